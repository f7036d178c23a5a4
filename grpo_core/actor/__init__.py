"""The policy in NumPy, without torch: what is served and what collects rollouts."""
