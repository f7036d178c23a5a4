"""Sweeps: groups of jobs that try several settings, and which of them did best.

- ``planning``: from a request to the settings that are tried. ``space`` draws them, ``halving`` says how many go on.
- ``sweep``: one, with its jobs. ``table``: all of them. ``registry``: takes them in, stops, resumes and forgets them.
- ``conductor``: starts their jobs as places come free. ``sweep_models`` sees to the models of these.
- ``ranking``: which settings did best, and how sure that is.
- ``recorder`` and ``restoring``: by which they survive the server.
"""
