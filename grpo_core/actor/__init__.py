"""The policy in NumPy, without torch: it collects rollouts and serves models."""
