"""The page of models."""

from service.dashboard.models.models_page import sort_by_name, sort_newest_first
from service.models.store import ModelEntry
from service.schemas.models import ModelStatus


def test_capital_and_small_letters_are_sorted_together() -> None:
    entries = [ModelEntry(name, ModelStatus.SAVED) for name in ("Best", "Zed", "apple", "best")]
    assert [entry.name for entry in sort_by_name(entries)] == ["apple", "Best", "best", "Zed"]


def test_the_newest_stand_first_and_those_that_are_gone_last() -> None:
    entries = [ModelEntry(name, ModelStatus.SAVED) for name in ("gone", "old", "new", "older")]
    files = {"old": (1, 20, 5), "new": (2, 30, 5), "older": (3, 10, 5)}
    assert [entry.name for entry in sort_newest_first(entries, files.get)] == ["new", "old", "older", "gone"]
