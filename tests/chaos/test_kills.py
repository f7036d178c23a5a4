"""A short form of ``make test-chaos``."""

from tests.chaos.kills import LENGTHS, run


def test_kills_lose_nothing() -> None:
    report = run(n_kills=2, seed=0, lengths=LENGTHS[:3])
    assert report["losses"] == {}
    assert report["jobs seen"] > 0


def test_what_is_lost_on_purpose_is_found() -> None:
    losses = run(n_kills=1, seed=0, loses=True, lengths=LENGTHS[:3])["losses"]
    assert losses["jobs not listed"] > 0
