"""What clients see of jobs: the list, the events, the metrics."""
