"""The model files, the policies in them, and their evaluations and films.

To read in this order:

- ``files``: the folder of models. ``paths`` says where each file lies, ``lock`` keeps other servers out, ``identity``
  names the folder, and ``notes`` holds what is noted of versions. ``kept`` says which versions there are, ``deletion``
  and ``trimming`` remove them, ``versions`` keeps them, and ``folder`` reads and writes.
- ``served``: a model as it is served, and ``store``: which files can be used, and the policies in memory.
- ``card``: what a file says about its model.
- ``playing``: evaluations and films. ``player`` is asked for them; it sends a ``play`` to a worker, in which
  ``episodes`` plays it.
- ``exporter``: models as files for other programs.
- ``promotion``: versions as clients see them, and ``replacement``: uploads and rollbacks.
"""
