"""Physics engines inside environments: their state, taken by their own functions."""
