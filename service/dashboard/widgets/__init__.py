"""Elements and texts that several pages of the dashboard share."""
