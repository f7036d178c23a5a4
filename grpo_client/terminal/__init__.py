"""The client in a terminal: its commands, and answers as text."""
