"""Put one environment back into a state that it has been in, prove that it works, and measure what it costs.

To read in this order:

- ``errors``: why an environment cannot be put back; ``object_graph``: what objects hold, and where two of them differ.
- ``native``: copies of physics engines.
- ``copying``: copies of all else.
- ``state``: for each layer, what a step changes in it; ``generators``, the same for random generators.
- ``proving``: replays that show whether all is restored.
- ``simulator``: one environment with its wrappers, and how callers capture, restore and prove it.
- ``outside_changes``: what callbacks set on environments, which a restore must not undo; ``attribute_copies``, how it
  notices and repeats that.
"""
