"""Put one environment back into a state that it has been in, prove that it works, and measure what it costs.

To read in this order:

- ``simulator``: one environment with its wrappers, and how callers capture, restore and prove it.
- ``state``: for each layer, what a step changes in it; ``generators``, the same for random generators.
- ``layers``: the layers that are copied together, so that what they share stays shared.
- ``copying``: deep copies; ``tables`` makes those of large arrays, ``native`` those of physics engines, and ``growth``
  warns where they grow.
- ``originals``: the objects that were there at first, into which a restore writes.
- ``proof``: replays that show whether all is restored. ``preserving`` leaves the environment as it was found,
  ``contents`` looks for differences, ``failures`` and ``errors`` say what went wrong, and ``report`` what it costs.
- ``outside``: what callbacks set on environments, which a restore must not undo.
"""
