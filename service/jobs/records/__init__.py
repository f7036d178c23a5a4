"""Jobs as they are remembered: in memory, and on the disk.

- ``record``: what is written down of a job; ``rows``: the same as rows; ``history``: its metrics and events.
- ``journal``: the jobs' file; ``database`` opens it; ``interruption`` puts it right after a kill.
- ``recorder``: the thread that writes. ``checkpoints``, ``unsaved``: policies that are not models yet.
"""
