"""The page of models."""

from service.dashboard.pages.models import sort_by_name
from service.models.store import ModelEntry
from service.schemas.models import ModelStatus


def test_capital_and_small_letters_are_sorted_together() -> None:
    entries = [ModelEntry(name, ModelStatus.SAVED) for name in ("Best", "Zed", "apple", "best")]
    assert [entry.name for entry in sort_by_name(entries)] == ["apple", "Best", "best", "Zed"]
