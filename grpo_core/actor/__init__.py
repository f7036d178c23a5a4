"""The policy in NumPy, without torch: it collects rollouts and serves models.

- ``actor``: from observations to actions, through ``normalization``, ``extractors``, layers and ``distributions``.
- ``single``: the same for one observation at a time, faster.
"""
