"""What may be asked of the server at once: by bodies, and by each client."""
