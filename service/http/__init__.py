"""How the service is reached over HTTP."""
