"""The service and the visitor of the page that is being built or used."""

from nicegui import ui

from service.app import Service
from service.dashboard.mount import SERVICE_KEY
from service.http.limits.clients import find_client


def get_service() -> Service:
    """Return the service that shows the current page."""
    service: Service = ui.context.client.request.scope[SERVICE_KEY]
    return service


def get_url() -> str:
    """Return the server's URL, as the visitor of the current page knows it."""
    return str(ui.context.client.request.base_url.replace(path="")).rstrip("/")


def get_client() -> str:
    """Return the address of the visitor of the current page."""
    return find_client(ui.context.client.request.scope)
