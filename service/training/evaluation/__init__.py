"""Evaluate the policy of a job: on the way, at the end, and whether its values mean something."""
