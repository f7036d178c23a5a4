"""The server itself: its health and its endpoints."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field


class Health(BaseModel):
    """The server is running; how many jobs and models it has, which only holders of its API key learn if it has one."""

    status: Literal["healthy"]
    timestamp: datetime = Field(examples=["2026-11-25T10:00:00Z"])
    active_jobs: int | None = Field(None, description="Number of queued and running jobs.", examples=[1])
    loaded_models: int | None = Field(None, description="Number of models in memory.", examples=[2])
    role: Literal["all", "serve"] = Field(
        "all", description="`serve` on a read-only replica; absent where the server trains too.", examples=["serve"]
    )


class Liveness(BaseModel):
    """The server is running."""

    status: Literal["alive"]


class ReadyState(BaseModel):
    """The server can take work."""

    status: Literal["ready"]
    warnings: list[str] = Field(
        [],
        description="What still works, but not as it should, in words.",
        examples=[["the jobs' file cannot be written (disk full)"]],
    )


class ServerInfo(BaseModel):
    """The server's version and main endpoints."""

    message: str = Field(examples=["GRPO API Server"])
    version: str = Field(examples=["1.0.0"])
    endpoints: dict[str, str] = Field(examples=[{"train": "POST /train", "inference": "POST /inference"}])
    dashboard: str | None = Field(description="Path of the dashboard; null on a replica.", examples=["/dashboard"])
    docs: str = Field(description="Path of the documentation of all endpoints.", examples=["/docs"])
