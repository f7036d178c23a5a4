"""What ``GRPO.train`` needs to update the policy and the value network on one rollout.

- ``losses``: the terms of the loss, as pure functions.
- ``policies``: SB3's policies with action masks, and on large batches. ``structure`` looks at one as it is now.
- ``optimizers``: one optimizer with step sizes of its own for each network.
- ``torch_actor``: plays with a policy whose layers ``grpo_core.actor``, which has no torch, does not know.
- ``seeding``: torch's random generators, used without a trace.
"""
