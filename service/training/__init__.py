"""What a job does: its plan and its training."""
