"""Whether a job is learning.

- ``course``: how its rewards changed, and whether that is more than chance.
- ``no_signal``: whether its groups have anything to learn from.
- ``verdict``: both in a sentence, with what to try.
"""
