"""The simulation agrees with hand arithmetic and with queueing theory."""

import math

import numpy as np
import pytest

pytest.importorskip("simpy", reason="simpy is in requirements-dev.txt")

from benchmarks.capacity.simulation import simulate_load, simulate_queue, simulate_replicas


def test_jobs_wait_for_the_slot_that_comes_free_first() -> None:
    # Slot A: 0-4, then the third job 4-6. Slot B: 1-3, then the fourth 3.5-4.5.
    stays = simulate_queue([0.0, 1.0, 2.0, 3.5], [4.0, 2.0, 2.0, 1.0], n_slots=2)
    assert [stay.ended_at for stay in stays] == [4.0, 3.0, 5.0, 5.0]
    assert [stay.waited for stay in stays] == [0.0, 0.0, 1.0, 0.5]


def test_whoever_finds_the_queue_full_is_refused_at_once() -> None:
    stays = simulate_queue([0.0, 1.0, 2.0, 5.5], [5.0, 5.0, 5.0, 1.0], n_slots=1, max_waiting=1)
    assert [math.isnan(stay.waited) for stay in stays] == [False, False, True, False]
    assert [stay.ended_at for stay in stays] == [5.0, 10.0, 2.0, 11.0]


@pytest.mark.parametrize("utilisation", [0.5, 0.8])
def test_the_mean_wait_is_pollaczeks_and_khinchines(utilisation: float) -> None:
    seconds, n_requests = 0.001, 12_000
    latencies = simulate_replicas(utilisation / seconds, seconds, 1, n_requests, seed=0)
    # M/D/1: rho s / (2 (1 - rho)).
    expected = utilisation * seconds / (2 * (1 - utilisation))
    assert latencies.mean() - seconds == pytest.approx(expected, rel=0.12)


def test_replicas_that_are_chosen_at_random_are_each_a_queue_of_its_own() -> None:
    one = simulate_replicas(700.0, 0.001, 1, 6_000, seed=1).mean()
    four = simulate_replicas(2800.0, 0.001, 4, 24_000, seed=2).mean()
    assert four == pytest.approx(one, rel=0.12)


@pytest.mark.parametrize(
    ("n_connections", "n_replicas", "n_cores", "expected"),
    [
        (1, 1, 2, 1 / 0.005),  # one after the other
        (16, 1, 2, 1 / 0.004),  # the replica is the bottleneck
        (16, 1, 1, 1 / 0.005),  # the core is
        (16, 2, 2, 2 / 0.005),  # both cores are
        (16, 2, 3, 2 / 0.004),  # the replicas are
        (64, 8, 16, 1 / 0.001),  # the client is
    ],
)
def test_a_closed_load_is_as_fast_as_its_bottleneck(
    n_connections: int, n_replicas: int, n_cores: int, expected: float
) -> None:
    load = simulate_load(n_connections, n_replicas, 0.001, 0.004, n_cores, 4.0)
    assert load.per_second == pytest.approx(expected, rel=0.02)
    if n_connections == 1:
        assert np.allclose(load.latencies, 0.004)
    assert math.isclose(load.latencies.min(), 0.004)
