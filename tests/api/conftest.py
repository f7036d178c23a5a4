"""Where the server of a test keeps its models."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient


@pytest.fixture
def models_dir(client: TestClient, tmp_path: Path) -> Path:
    return tmp_path / "models"
