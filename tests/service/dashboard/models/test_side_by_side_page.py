"""Two models beside each other: which ones play, and what is said of one that is missing."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.models import make_model


@pytest.mark.parametrize(
    ("query", "left", "right", "missing"),
    [
        ("", "m", "other", []),
        ("left=m@prod", "m@prod", "other", []),
        ("left=m@prod&right=m@2", "m@prod", "m@2", []),
        ("left=gone&right=m@test", "m", "other", ["gone", "m@test"]),
    ],
)
def test_versions_play_beside_models(
    client: TestClient, app: FastAPI, query: str, left: str, right: str, missing: list[str]
) -> None:
    store = app.state.service.store
    store.publish("m", make_model("CartPole-v1").to_bytes())
    store.set_alias("m", "prod", 1)
    store.publish("m", make_model("CartPole-v1", seed=1).to_bytes())
    store.publish("other", make_model("CartPole-v1").to_bytes())
    page = client.get(f"/dashboard/side-by-side?{query}").text
    assert f"{left}, on the left" in page
    assert f"{right}, on the right" in page
    assert [name for name in ("gone", "m@test") if f"There is no model {name}." in page] == missing
