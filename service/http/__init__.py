"""The HTTP layer: routes, and the checks and headers around them.

- Layers, in the order in which a request meets them: ``fast_inference``, ``access_log``, ``browser_rules``,
  ``request_guard``, ``head_requests``. ``request_ids`` and ``sessions`` serve them, ``limits`` bounds what one client
  may do.
- ``routes``: the endpoints. ``unexpected_input``, ``file_headers``, ``films``: what several of them share.
- ``problems``: error answers, with the page ``not_found`` for people. ``openapi``, ``examples``: the published schema.
- ``serving``: sockets, connections and the shutdown.
"""
