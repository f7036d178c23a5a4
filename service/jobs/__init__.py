"""Training jobs: how one is taken in, trained, remembered and shown.

To read in this order:

- ``job``: one job, from queued to done. ``transitions`` lists its statuses, ``guarded_state`` holds what changes,
  ``clock`` measures its time, and ``progress`` takes its worker's reports.
- ``runner``: trains jobs in threads that watch their workers. ``lineage`` finds the models that a job began from and
  saved, and ``totals`` counts over all jobs.
- ``table``: all jobs, to find, list, label and forget. ``registry``: names, places in the queue, resumes, shutdown.
- ``admission``: from a request to a queued job. ``client_jobs``: how much one client may ask for.
- ``records``: jobs in memory and on the disk. A ``record`` and a ``history`` are written into the ``journal`` by the
  ``recorder``, ``checkpoints`` keeps the files that jobs go on from, and ``unsaved`` the models that no disk takes.
- ``description``: the status that clients see. ``judging`` says whether a job learns, and ``views`` makes lists,
  curves, films and streams of events.
"""
