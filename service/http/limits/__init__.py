"""Limits of what the server takes at once: of bodies, and of each client."""
