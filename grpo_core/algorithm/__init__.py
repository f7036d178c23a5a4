"""The bases of ``GRPO``: all of it that is not the method."""
