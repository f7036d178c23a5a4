"""What is remembered of jobs: in memory, and on the disk."""
