"""Tell which servers are asked directly, and which proxies the environment names."""

import ipaddress
import os

import httpx2

_LOCAL_NAME = "localhost"
_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def is_this_machine(host: str) -> bool:
    """Return whether a host is this machine under one of its own names, which no proxy could reach."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host == _LOCAL_NAME or host.endswith(f".{_LOCAL_NAME}")


def name_proxies() -> str:
    """Name the variables that are set; empty if none is."""
    return " or ".join(name for name in _VARIABLES if os.environ.get(name) or os.environ.get(name.lower()))


def describe_proxy(error: httpx2.RequestError) -> str:
    """Name the variable whose proxy a request may have gone through; empty if it went directly."""
    try:
        host = error.request.url.host
    except RuntimeError:  # it was never sent
        return ""
    names = "" if is_this_machine(host) else name_proxies()
    return f" It may have been asked through the proxy of {names}." if names else ""
