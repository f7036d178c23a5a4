"""The page of models."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from grpo_core.saving.model_file import ModelFileError
from service.dashboard.models.models_page import _ModelCards, sort_by_name, sort_newest_first
from service.models.store import ModelEntry
from service.schemas.models import ModelStatus
from tests.models import make_model
from tests.support import open_model_store


def test_capital_and_small_letters_are_sorted_together() -> None:
    entries = [ModelEntry(name, ModelStatus.SAVED) for name in ("Best", "Zed", "apple", "best")]
    assert [entry.name for entry in sort_by_name(entries)] == ["apple", "Best", "best", "Zed"]


def test_the_newest_stand_first_and_those_that_are_gone_last() -> None:
    entries = [ModelEntry(name, ModelStatus.SAVED) for name in ("gone", "old", "new", "older")]
    files = {"old": (1, 20, 5), "new": (2, 30, 5), "older": (3, 10, 5)}
    assert [entry.name for entry in sort_newest_first(entries, files.get)] == ["new", "old", "older", "gone"]


def test_a_file_that_the_disk_refuses_is_one_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_model_store(tmp_path)
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
    store.publish("bad", content)
    store.publish("good", content)
    read = store.folder.read

    def refuse(name: str) -> object:
        if name == "bad":
            raise ModelFileError("the file cannot be read (Permission denied).")
        return read(name)

    monkeypatch.setattr(store.folder, "read", refuse)
    page = object.__new__(_ModelCards)
    page._service = SimpleNamespace(store=store, player=Mock(find_evaluation=Mock(return_value=None)))  # type: ignore[assignment]
    bad, good = (card for card, _ in page._make_cards(store.list_models()))
    assert (bad.name, bad.status, bad.n_bytes, bad.sha256) == ("bad", ModelStatus.CORRUPT, len(content), None)
    assert (good.name, good.status, good.env_name) == ("good", ModelStatus.LOADED, "CartPole-v1")
