"""Training jobs: their queue, state, metrics and events."""
