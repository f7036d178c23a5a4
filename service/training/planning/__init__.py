"""From a request to a plan: its names looked up, its settings filled in, its memory bounded, all of it tried out.

- ``planner``: makes a ``plan``. It looks up ``names`` in the server, and has a worker do the rest.
- ``fill_in``: that rest. ``defaults`` are the settings that the request leaves out, ``memory_limits`` bounds them.
"""
