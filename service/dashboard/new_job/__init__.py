"""The form that starts a job or a sweep."""
