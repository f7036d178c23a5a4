"""A training under way, in a file from which it goes on as if it had never been interrupted."""
