"""The parts GRPO is made of. Nothing here knows about the web service."""

__version__ = "1.0.0"
