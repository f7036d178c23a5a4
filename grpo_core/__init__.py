"""The parts GRPO is made of. Nothing here knows about the web service."""
