"""The pages of all jobs and of one.

- ``jobs_page``: all jobs. ``address`` reads what is shown from the page's query, and ``table`` makes the rows.
- ``job_page``: one job. ``job_head`` is the card at its head, ``job_film`` the film of its newest checkpoint,
  ``lineage`` where it came from and what became of it, and ``record_tables`` its configuration, evaluations and events.
- ``actions``: what both pages can do with a job. ``curves`` describes the curves that both draw, and ``curve_sender``
  sends them to the page of all jobs.
"""
