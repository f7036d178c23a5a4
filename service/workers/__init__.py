"""Where tasks run: threads and processes."""
