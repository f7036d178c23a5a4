"""Groups of branches: how they are collected, stored and judged.

Every group has one anchor, so the axis ``n_groups`` of an array counts both. Arrays are time-major with the group's
members last: ``(horizon, n_groups, group_size, ...)``. ``step_mask`` is True where a branch took a step.

- ``group``: one group of branches, and how the groups of a rollout are played.
- ``anchors``: where the next groups start; ``archive`` holds states to start from again.
- ``collector``: plays groups. ``antithetic`` draws opposite noise for pairs, ``normalization`` applies a
  ``VecNormalize``, ``callback_view`` shows SB3's callbacks what is under way.
- ``rollout``: stores what was played and cuts it into minibatches.
- ``rewards``: puts reward functions in the place of the environment's rewards.
- ``advantage``: from rewards to advantages, as pure functions; ``correlation``: how alike the members are.
"""
