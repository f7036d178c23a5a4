"""Groups of branches: how they are collected, stored and judged.

Every group has one anchor, so the axis ``n_groups`` of an array counts both. Arrays are time-major with the group's
members last: ``(horizon, n_groups, group_size, ...)``. ``step_mask`` is True where a branch took a step.
"""
