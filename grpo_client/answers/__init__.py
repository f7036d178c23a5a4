"""The server's answers as frozen dataclasses by topic, and how they are read."""
