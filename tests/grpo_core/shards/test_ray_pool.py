"""Rollout workers on Ray, where it is installed."""

from pathlib import Path
from typing import Any

import pytest

from grpo_core.shards.choose_pool import choose_pool
from tests.grpo_core.shards.models import DyingCartPole, HangingCartPole, learn, make_model, wrap

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own


@pytest.fixture
def ray(ray_cluster: None) -> Any:
    """The module, connected to a cluster on loopback."""
    return pytest.importorskip("ray")


def test_the_weights_are_those_of_one_process_also_where_an_actor_dies_or_hangs(ray: Any, tmp_path: Path) -> None:
    from grpo_core.shards.ray_pool import RayPool

    assert isinstance(choose_pool(2, 300.0), RayPool)
    with RayPool(2) as pool:
        alone = learn(make_model(), 1, pool)
        assert learn(make_model(), 2, pool) == alone
        note = tmp_path / "died"
        died = learn(make_model(wrap(lambda: DyingCartPole(note))), 2, pool)
        assert note.exists()
        assert died == learn(make_model(wrap(lambda: DyingCartPole(None))), 1, pool)
        note = tmp_path / "hangs"
        pool.stall_seconds = 4.0
        hung = learn(make_model(wrap(lambda: HangingCartPole(note, is_catching=False))), 2, pool)
        assert note.exists()
        assert hung == died
        assert learn(make_model("Pendulum-v1"), 2, pool) == learn(make_model("Pendulum-v1"), 1, pool)


def test_a_cluster_without_a_free_place_says_so(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from grpo_core.shards import ray_pool

    monkeypatch.setattr(ray_pool, "_PLACE_SECONDS", 0.1)
    with pytest.raises(RuntimeError, match=r"no free place for a rollout worker in .* lower n_rollout_workers, or add"):
        learn(make_model(), 2, ray_pool.RayPool(2, num_cpus=5))
