"""Groups of branches: how they are collected, stored and judged.

Every group starts from one anchor state, so arrays call the axis of the groups ``n_anchors``. They are time-major with
the group's members last: ``(horizon, n_anchors, group_size, ...)``. ``step_mask`` is True where a branch took a step.
"""
