"""Who plays the shards of a rollout."""

import sys

from grpo_core.shards.choose_pool import InProcessPool, choose_pool
from grpo_core.shards.process_pool import ProcessPool


def test_a_pool_is_chosen_by_where_the_training_runs() -> None:
    assert isinstance(choose_pool(1, 300.0), InProcessPool)
    assert isinstance(choose_pool(2, 300.0), ProcessPool) or "ray" in sys.modules
