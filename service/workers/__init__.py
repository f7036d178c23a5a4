"""Tasks, and the threads and processes that run them.

To read in this order:

- ``task``: what is run, and what is heard of it. ``executor``: who runs it, and the choice among ``threads``,
  ``processes``, ``cluster`` and ``none``.
- ``processes``: a worker per task. ``forking`` starts it from a process that ``preload`` has prepared, ``worker`` runs
  in it, and ``messages`` are what it sends.
- ``short_tasks``: tasks that requests wait for. ``receipts``: which reports of a task have been taken.
- ``end_signals``: which signals end a server, and must not end its workers.
"""
