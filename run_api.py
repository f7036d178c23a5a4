"""Start the web service: ``python run_api.py --host 127.0.0.1 --port 8000 --models-dir models``."""

import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports. The server handles it by itself as soon as it runs.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

# Read when NumPy is imported, and torch by tasks in threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from api import create_app
from grpo_cli.server_options import add_server_options, get_server_options
from grpo_terminal import Parser, end_well
from service.extensions import ExtensionError
from service.http.browser_rules import DASHBOARD_PATH
from service.http.serving.connections import Connection
from service.http.serving.shutdown import Server
from service.http.serving.sockets import Socket
from service.logs import configure_logs
from service.models.files.lock import lock_folder
from service.replicas.shared_port import join_port
from service.replicas.supervisor import Supervisor
from service.schemas.violations import summarize_violations
from service.settings import Settings, UnsafeSettingsError, describe_unknown_variables

logger = logging.getLogger("grpo.service")

# Long enough for clients that look once a second; idle connections are closed after it.
_KEEP_ALIVE_SECONDS = 5
# What is being answered at the end may take a second; a client that reads slowly does not hold the end up longer.
_DRAIN_SECONDS = 5
# A request waits for a training thread to release the interpreter: a tenth of the default time.
_SWITCH_SECONDS = 0.0005


def main() -> int:
    """Serve until interrupted.

    :return: The exit status: 0, 1 if the server could not start, or 2 if the settings are invalid.
    """
    with ExitStack() as held:
        try:
            settings = Settings.model_validate(_parse_flags())
            configure_logs(settings.log_style)
            for warning in describe_unknown_variables():
                logger.warning(warning)
            settings.check_exposure()
            if settings.replicas > 1:
                return _supervise(settings)
            lock = None
            if settings.is_replica:  # writes nothing there, and shares its port
                held.enter_context(join_port(settings))
            else:
                lock = held.enter_context(lock_folder(settings.models_dir))
            app = create_app(settings, lock)
            listeners = _open_listeners(settings)
            if not settings.is_replica:  # uvicorn opens its own; it would only log that the port is taken
                for listener in listeners:
                    listener.close()
        except ValidationError as error:
            _, violations = summarize_violations(error.errors(include_url=False))
            return _refuse("; ".join(_describe_violation(**violation) for violation in violations))
        except (UnsafeSettingsError, ExtensionError, OSError) as error:
            return _refuse(str(error))
        return _serve(app, settings, listeners if settings.is_replica else None)


def _describe_violation(field: str, message: str) -> str:
    """Name the setting with its variable; a violation that concerns two settings names them itself."""
    return f"{field} (GRPO_{field.partition('.')[0].upper()}) {message}" if field else message


def _supervise(settings: Settings) -> int:
    """Start replicas with the same options as this process."""

    def make_command(number: int) -> list[str]:
        command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--replicas=1"]
        if settings.metrics_port is not None:
            command.append(f"--metrics-port={settings.metrics_port + number}")
        return command

    return Supervisor(make_command, settings.replicas).run()


def _serve(app: FastAPI, settings: Settings, listeners: list[socket.socket] | None) -> int:
    sys.setswitchinterval(_SWITCH_SECONDS)
    # What the imports have made is there to stay; to search it for garbage would hold all requests up for 60 ms.
    gc.freeze()
    service = app.state.service
    server = _AnnouncedServer(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Connection,
            ws=Socket,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            server_header=False,
            # For the dashboard's socket; by default a visitor could send 16 MiB at once.
            ws_max_size=settings.max_body_bytes,
            log_config=None,  # configure_logs covers its loggers too
            access_log=False,  # AccessLog says more, and leaves out what comes by the thousand
        ),
        service.begin_close,
        "replica answers" if settings.is_replica else "dashboard is",
        "" if settings.is_replica else DASHBOARD_PATH,
    )
    status = 1
    try:
        if listeners is None:
            server.run()
        else:
            server.run(listeners)
        status = 0 if server.started else 1
    except Exception:
        logger.critical("the server ends because of an error", exc_info=True)
    finally:  # it may have ended before it could tell the application
        service.close()
    if service.executor.is_busy:
        # A thread that hangs in its environment cannot be killed, and may crash an interpreter that ends around it.
        os._exit(status)
    return status


class _AnnouncedServer(Server):
    """Logs its address once it listens.

    :param what: Subject of that line, such as ``"dashboard is"``.
    :param path: Path that the address ends with.
    """

    def __init__(self, config: uvicorn.Config, begin_end: Callable[[], None], what: str, path: str) -> None:
        super().__init__(config, begin_end)
        self._what, self._path = what, path

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = {"127.0.0.1": "localhost", "::1": "localhost", "0.0.0.0": "localhost", "::": "localhost"}.get(
            host, host
        )
        where = f"[{shown}]" if ":" in shown else shown
        logger.info(f"the {self._what} at http://{where}:{port}{self._path}")


class _AddressError(OSError):
    """Nothing can listen on an address; the message names it, the reason and the remedy."""


def _open_listeners(settings: Settings) -> list[socket.socket]:
    """Listen on the server's port, and on the one that a replica has for itself.

    :raises _AddressError: If nothing can listen there.
    """
    listeners = _listen(settings.host, settings.port, settings.is_replica)
    if settings.metrics_port is not None:
        listeners += _listen(settings.host, settings.metrics_port, False)
    return listeners


def _listen(host: str, port: int, is_shared: bool) -> list[socket.socket]:
    """Listen on all addresses of a host.

    :param is_shared: Whether other processes of this user may listen there too; the system spreads connections.
    :raises _AddressError: If nothing can listen there.
    """
    listeners = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            if os.name == "posix":  # elsewhere it would let two servers share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared and sys.platform != "win32":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            if not is_shared:  # what arrives at a shared port before the server is ready would wait in vain
                listener.listen()
        return listeners
    except OSError as error:
        for listener in listeners:
            listener.close()
        reason = "address already in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
        raise _AddressError(
            f"nothing can listen on port {port} of {host} ({reason}); choose another port with --port or GRPO_PORT, "
            "such as --port 8001, or another address with --host."
        ) from error


def _parse_flags() -> dict[str, Any]:
    # Where it is installed, "grpo serve" starts this file.
    program = "grpo serve" if Path(__file__).parent.name == "server" else None
    parser = Parser(prog=program, description="Train and serve policies over HTTP.")
    add_server_options(parser)
    return get_server_options(parser.read())


def _refuse(reason: str) -> int:
    # A path may hold a line feed, or what a terminal takes for a command.
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in reason)
    sys.stderr.write(f"grpo: {line}\n")
    return 2


if __name__ == "__main__":
    sys.exit(end_well(main))
