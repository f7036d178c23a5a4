"""Read-only replicas: what they refuse, how several share a port, and where their models come from."""
