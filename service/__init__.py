"""The web service: HTTP routes and dashboard, and the jobs and models behind them.

A request's way inwards:

- ``http``: guards, routes and answers. ``dashboard``: the pages. ``schemas``: requests and answers, with their limits.
- ``app``: the service's parts, and what needs several of them.
- ``jobs`` and ``sweeps``: trainings, one and many. ``training``: how one is planned and carried out, in a worker.
- ``models``: the files. ``inference``: actions from them. ``replicas``: servers that do nothing else.
- ``environments``: what can be trained in, and what it is like.
- ``workers``: processes and threads that run foreign code.
- ``monitoring``, ``logs``, ``context``: what operators see.
- ``settings``, ``extensions``, ``errors``, ``spaces``, ``restart_pause``: what the others stand on.
"""
