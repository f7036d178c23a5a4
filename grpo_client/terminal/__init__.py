"""The client in a terminal: its commands, and lists as tables."""
