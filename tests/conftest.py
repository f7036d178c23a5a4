"""Fixtures that several test modules use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from api import create_app
from service.settings import Settings

torch.set_num_threads(1)


@pytest.fixture()
def settings(tmp_path: Path) -> Settings:
    """Settings of a service with a models folder of its own."""
    return Settings(models_dir=tmp_path / "models")


@pytest.fixture()
def client(settings: Settings) -> Iterator[TestClient]:
    """A client of a running service."""
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        yield client
