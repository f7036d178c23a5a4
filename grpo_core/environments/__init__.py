"""Make environments: registered ones with their arguments and named wrappers."""
