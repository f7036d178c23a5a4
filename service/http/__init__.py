"""The HTTP layer: routes, and the checks and headers around them."""
