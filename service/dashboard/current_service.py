"""The service of the page that is being built or used."""

from nicegui import ui

from service.app import Service
from service.dashboard.mount import SERVICE_KEY


def get_service() -> Service:
    """Return the service that shows the current page."""
    service: Service = ui.context.client.request.scope[SERVICE_KEY]
    return service
