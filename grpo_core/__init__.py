"""The parts GRPO is made of. Nothing here knows about the web service.

From ``grpo.py`` inwards, in the order of a rollout:

- ``algorithm``: the bases of ``GRPO``, all that is not the method. ``options``: its arguments, presets and rewards.
- ``environments``: make them and check what they hand over. ``restoring``: a ``Simulator``, which is one environment
  that can be put back. ``banks``: all of those behind a vectorised environment.
- ``groups``: from anchors to rollouts to advantages. ``shards``: a rollout over many workers.
- ``actor``: the policy in NumPy, which plays. ``update``: losses, and what the optimizer needs. ``values``: values
  fitted to whole episodes.
- ``fast``: the same as ``groups`` and ``update``, faster.
- ``saving`` and ``checkpoints``: models and trainings in files. ``export``: policies for other programs.
- ``evaluation``, ``success``, ``film``: whole episodes, judged and shown.
- ``spaces``, ``npy``, ``process``, ``suggestions``, ``replaced_methods``: what the others stand on.
"""

__version__ = "1.0.0"
