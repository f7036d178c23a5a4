"""What can be trained in."""
