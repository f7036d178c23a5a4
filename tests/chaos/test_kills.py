"""A short form of ``make test-chaos``."""

from tests.chaos.kills import run


def test_kills_lose_nothing() -> None:
    report = run(n_kills=2, seed=0)
    assert report["losses"] == {}
    assert report["jobs seen"] > 0


def test_what_is_lost_on_purpose_is_found() -> None:
    losses = run(n_kills=1, seed=0, loses=True)["losses"]
    assert losses["jobs not listed"] > 0
