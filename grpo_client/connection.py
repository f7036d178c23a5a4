"""Reach a server: directly on this machine, else as the environment says; and explain why it cannot be reached."""

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any
from urllib.parse import quote

import httpx2

from grpo_client.errors import GRPOError, InvalidArgument, MissingPackage
from grpo_client.proxies import is_this_machine, name_proxies

# What sockets can wait for ends at 24 days.
_MAX_TIMEOUT_SECONDS = 1_000_000
_MAX_PORT = 65_535


def make_options(base_url: str, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    """Make the arguments of httpx2's clients.

    A server on this machine is never asked through a proxy: the proxy could not reach it.

    :raises InvalidArgument: If a value cannot be used.
    """
    url = read_url(str(base_url))
    if not isinstance(timeout_seconds, Real) or not 0 < timeout_seconds <= _MAX_TIMEOUT_SECONDS:
        raise InvalidArgument(
            f"timeout_seconds={timeout_seconds!r} is not allowed: it must be a number above 0 and at most "
            f"{_MAX_TIMEOUT_SECONDS}."
        )
    if not isinstance(api_key, str | None):
        raise InvalidArgument(f"api_key is of type {type(api_key).__name__}; give the text of GRPO_API_KEY, or None.")
    key = (api_key or "").strip()  # a file's last line ends in a line break
    if not key.isprintable():
        raise InvalidArgument("api_key has characters that no header can carry; give the value of GRPO_API_KEY.")
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {key}".encode()} if key else {},
        "timeout": float(timeout_seconds),
        "trust_env": not is_this_machine(url.host),
    }


def read_url(address: str) -> httpx2.URL:
    """Read the URL of a server.

    :raises InvalidArgument: If no server can have it.
    """
    if not address.lower().startswith(("http://", "https://")):
        raise InvalidArgument(f"base_url='{address}' is not allowed: write it as http://HOST:PORT or https://HOST.")
    if "?" in address or "#" in address:  # paths are written behind it
        raise InvalidArgument(f"base_url='{address}' has a query or a fragment; write it as http://HOST:PORT.")
    try:
        url = httpx2.URL(address.rstrip("/"))
    except httpx2.InvalidURL as error:
        raise InvalidArgument(
            f"base_url='{address}' is not allowed ({error}); write it as http://HOST:PORT."
        ) from error
    if not url.host:
        raise InvalidArgument(f"base_url='{address}' names no host; write it as http://HOST:PORT.")
    if url.port is not None and not 1 <= url.port <= _MAX_PORT:  # a socket would take the remainder by 65536
        raise InvalidArgument(f"base_url='{address}' has port {url.port}; ports are from 1 to {_MAX_PORT}.")
    return url


def quote_name(name: str) -> str:
    """Write the name or the id of something as one segment of a path.

    :raises InvalidArgument: If it is no text, or would make the path that of something else.
    """
    if not isinstance(name, str) or name in ("", ".", ".."):
        raise InvalidArgument(f"{name!r:.100} is neither a name nor an id; give one that the server lists, as a text.")
    if "/" in name:  # even one that is quoted: the server takes %2F for the end of a segment
        raise InvalidArgument(f"{name!r:.100} holds a '/', as no name or id does; give one that the server lists.")
    return quote(name, safe="", errors="surrogatepass")


@contextmanager
def explain_proxy() -> Iterator[None]:
    """Explain why httpx2 cannot begin: it reads the proxies of the environment, which may be wrong or need a package.

    :raises MissingPackage: If a package is missing.
    :raises GRPOError: If a proxy cannot be used.
    """
    try:
        yield
    except ImportError as error:
        raise MissingPackage(
            f"{name_proxies()} asks for a proxy that needs a package: pip install httpx2[socks], or unset the variable."
        ) from error
    except (ValueError, httpx2.InvalidURL) as error:
        raise GRPOError(f"{name_proxies()} holds no proxy that can be used ({error}); correct or unset it.") from error


@contextmanager
def explain_request() -> Iterator[None]:
    """Explain why a request cannot be written; errors of the transport pass.

    :raises InvalidArgument: If a value cannot be sent.
    :raises GRPOError: If the client is closed.
    """
    try:
        yield
    except (GRPOError, httpx2.RequestError):
        raise
    except RuntimeError as error:
        if "closed" in str(error):
            raise GRPOError("the client is closed; make a new one.") from error
        raise
    except (TypeError, ValueError, RecursionError, httpx2.InvalidURL) as error:
        raise InvalidArgument(f"the request cannot be sent: {error}; give what JSON can express.") from error
