"""The routes, by topic. Each calls the service and adds only what concerns HTTP.

- ``training`` and ``sweeps``: jobs, one and many.
- ``models``, their ``versions``, their ``files``, and actions from them: ``inference``.
- ``catalogue``: environments and reward functions. ``server``: health and metrics. ``login``: browsers.
- ``dependencies``: parameters and errors of several. ``unambiguous_route``: no object in a body has a name twice.
"""
