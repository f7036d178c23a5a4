"""The routes, by topic. Each calls the service and adds only what concerns HTTP."""
