"""Whether a job is learning."""
