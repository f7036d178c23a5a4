"""Deep copies of what an environment keeps, in which what its layers share stays shared.

To read in this order:

- ``copier``: deep copies. ``tables`` makes those of large arrays, and ``references`` stand for what refers to others.
- ``originals``: the objects that were there at first, into which a restore writes.
- ``layers``: an environment and its wrappers, which are copied together.
- ``growth``: warns where copies grow.
"""
