"""Training jobs: where they are and what they have measured."""
