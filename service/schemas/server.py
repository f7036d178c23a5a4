"""The server itself: whether it lives, and what it offers."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field


class Health(BaseModel):
    """That the server lives, and what it holds."""

    status: Literal["healthy"]
    timestamp: datetime = Field(examples=["2026-11-25T10:00:00Z"])
    active_jobs: int = Field(description="Queued and running.", examples=[1])
    loaded_models: int = Field(description="Models in memory.", examples=[2])


class Liveness(BaseModel):
    """That the server lives."""

    status: Literal["alive"]


class ReadyState(BaseModel):
    """That the server can take work."""

    status: Literal["ready"]


class ServerInfo(BaseModel):
    """What the server offers."""

    message: str = Field(examples=["GRPO API Server"])
    version: str = Field(examples=["1.0.0"])
    endpoints: dict[str, str] = Field(examples=[{"train": "POST /train", "inference": "POST /inference"}])
