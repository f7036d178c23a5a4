"""What the service keeps, as the page that is being built or used needs it."""

from typing import Any

from fastapi import FastAPI
from nicegui import ui

from service.dashboard.mount import SERVICE_KEY


def get_service() -> FastAPI:
    """Return the service that the current page belongs to."""
    service: FastAPI = ui.context.client.request.scope[SERVICE_KEY]
    return service


def get_state() -> Any:
    """Return what that service keeps: its registry, its store, its settings."""
    return get_service().state
