"""The model file and its content."""
