"""The service, as the page that is being built or used needs it."""

from nicegui import ui

from service.app import Service
from service.dashboard.mount import SERVICE_KEY


def get_service() -> Service:
    """Return the service that the current page belongs to."""
    service: Service = ui.context.client.request.scope[SERVICE_KEY]
    return service
