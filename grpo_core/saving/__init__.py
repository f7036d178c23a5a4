"""The model file and its content.

- ``model_file``: reads and writes it: JSON and arrays in a zip. ``space_json`` describes the spaces in it, ``errors``
  says why one is refused, and ``moments`` checks whether a training could go on with one.
- ``model_state``: from a ``GRPO`` to the content of a file, and back; ``optimizer_state`` its optimizer.
- ``copies``: what of a ``GRPO`` is pickled or copied.
- ``atomic_write``: a crash leaves the old file or the new one.
"""
