"""What several pages of the dashboard share."""
