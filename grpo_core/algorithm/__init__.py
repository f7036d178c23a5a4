"""The bases of ``GRPO``, each built on the one before it: all of it that is not the method.

- ``acting``: chooses actions, and copies the policy into actors.
- ``saved``: saves, loads, exports and copies.
- ``grouped``: makes groups, plays them, and keeps them current.
"""
