"""Planning and training: the work of a job, done in a worker."""
