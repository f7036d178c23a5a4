"""Planning and training: the work of a job, done in a worker.

To read in this order:

- ``planning``: from a request to a plan.
- ``order``: what a worker gets. ``train`` carries it out.
- ``build_model``: the policy that a configuration describes. ``init_model``: one that begins as another ended.
- ``evaluation``: on the way and at the end.
- ``stop_rules``: end a training early. ``checkpoint_callback``: keeps what it goes on from.
"""
