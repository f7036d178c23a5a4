"""Actions for one observation, or for many."""
