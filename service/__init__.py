"""What the routes call: jobs, models, settings, guards."""
