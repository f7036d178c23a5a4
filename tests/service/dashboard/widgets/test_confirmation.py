"""What is asked before a model is replaced."""

from pathlib import Path

import pytest

from service.dashboard.widgets.confirmation import describe_old_model
from tests.models import make_model
from tests.support import open_model_store


@pytest.mark.parametrize(("max_versions", "is_kept"), [(1, False), (2, True)])
def test_a_replaced_model_becomes_what_is_said(tmp_path: Path, max_versions: int, is_kept: bool) -> None:
    store = open_model_store(tmp_path, max_versions)
    for seed in range(2):
        store.publish("m", make_model("CartPole-v1", seed).to_bytes())
    assert (store.folder.get_signature("m@1") is not None) == is_kept
    assert ("stays" in describe_old_model(max_versions)) == is_kept
