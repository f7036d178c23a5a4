"""One rollout over many workers.

A rollout is cut into *shards*: some groups of one environment each. What a shard yields depends on the policy, on the
states that its groups start from, and on a seed of its own; not on the process that plays it. So the same settings
and the same seed give the same weights bit for bit with any number of workers, and a shard whose worker has died is
played again.

- ``shard_messages``: what goes to workers and comes back.
- ``shard_player``: plays shards, in a worker or in this process.
- ``sharded_collector``: cuts rollouts, and puts them together again.
- ``pool``: hands shards to workers, whatever these are; ``process_pool`` has them on this machine, ``ray_pool`` on
  Ray's.
- ``choose_pool``: takes one of the two, or neither.
"""
