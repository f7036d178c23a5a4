"""The page of a model says when another file has taken the place of the one that it shows."""

from pathlib import Path
from unittest.mock import Mock

import anyio
import pytest

from service.dashboard.models import model_page
from tests.models import make_model
from tests.support import open_model_store


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """Files of different policies."""
    return [make_model("CartPole-v1", seed).to_bytes() for seed in range(2)]


@pytest.mark.parametrize(
    ("name", "change", "notice"),
    [
        ("m", "look again", None),
        ("m", "train again", "replaced"),
        ("m@1", "train again", None),
        ("m@prod", "train again", None),
        ("m@prod", "train again and promote", "replaced"),
        ("m@prod", "promote", "replaced"),
        ("m@prod", "delete", "deleted"),
    ],
)
def test_only_another_file_under_the_name_of_the_page_is_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: list[bytes], name: str, change: str, notice: str | None
) -> None:
    store = open_model_store(tmp_path)
    store.publish("m", contents[0])
    store.set_alias("m", "prod", 1)
    if change == "promote":
        store.publish("m", contents[1])
    notes = {"deleted": Mock(), "replaced": Mock()}
    monkeypatch.setattr(model_page, "make_note", Mock(side_effect=notes.values()))
    watch = model_page._FileWatch(store, name, store.get(name), store.inspect_file(name).sha256)
    watch.controls = [control := Mock()]
    if change == "delete":
        store.delete("m")
    if "train again" in change:
        store.publish("m", contents[1])
    if "promote" in change:
        store.set_alias("m", "prod", 2)
    anyio.run(watch.check)
    shown = [which for which, note in notes.items() if note.set_visibility.call_args.args[0]]
    assert shown == ([] if notice is None else [notice])
    control.set_visibility.assert_called_with(notice is None)
