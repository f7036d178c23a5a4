"""What may be asked of the server at once: by connections, by bodies, and by each client."""
