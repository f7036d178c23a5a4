"""Make environments, with arguments and named wrappers, and check what they hand over."""
