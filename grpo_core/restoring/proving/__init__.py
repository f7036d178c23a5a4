"""Replays that show whether a restore brings back all that matters, and what it costs.

To read in this order:

- ``report``: what was found out, and the costs.
- ``preserving``: leaves the environment as it was found.
- ``failures``: says what went wrong, and what to do.
- ``proof``: the replays.
"""
