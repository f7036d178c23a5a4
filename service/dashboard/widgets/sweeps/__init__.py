"""What shows a sweep: the form that starts one, and its settings as a table and as a drawing."""
