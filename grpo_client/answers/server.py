"""The server's answers about itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from grpo_client.answers.reading import Answer


@dataclass(frozen=True, kw_only=True)
class ServerInfo(Answer):
    """The server's version and endpoints."""

    message: str
    version: str
    endpoints: Mapping[str, str]
    dashboard: str | None = None
    docs: str | None = None


@dataclass(frozen=True, kw_only=True)
class Health(Answer):
    """Proof that the server is alive, and how many jobs and models it holds."""

    status: str
    timestamp: datetime
    active_jobs: int | None = None
    loaded_models: int | None = None
    role: str = "all"
