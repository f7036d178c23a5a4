"""The connection of this process to a Ray cluster."""

import importlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

from service.workers.cluster import ray_slot
from service.workers.task import ClusterLostError

logger = logging.getLogger("grpo.service")

# With it, Ray takes 127.0.0.1 for the address of this machine, and listens there alone.
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost")
# The server's own code, which is sent to nodes of other machines.
_OWN_MODULES = ("grpo", "grpo_core", "service")
# On one machine, the memory for objects on their way between processes.
_LOCAL_STORE_BYTES = 256 * 2**20
_PROBE_SECONDS = 5.0
# How late a stop or the end of the server may end the wait for the cluster.
_WATCH_SECONDS = 0.1
# Ray sets itself no limit. It starts a cluster of its own in some seconds, or in many where all cores are busy.
_CONNECT_SECONDS = 120.0
# Ray is one per process. Guards it, and the connections that use what they have connected it to.
_RAY_LOCK = threading.Lock()
_users: set[int] = set()


class RayOptions(NamedTuple):
    """How to use a cluster.

    :param address: ``host:port`` of a running cluster; None starts one on this machine, which ends with the server.
    :param gpus_per_job: GPUs that a job on ``cuda`` asks for; a part lets several share one.
    :param wait_seconds: Longest time that a job waits for a node with room.
    :param env_modules: The operator's modules, which travel to the nodes unless they are installed packages.
    :param lease_seconds: How long jobs go on in a running cluster without a server that asks for them.
    :param server_id: Tells the jobs of this server from those of others in the cluster; without it none outlives it.
    """

    address: str | None = None
    gpus_per_job: float = 1.0
    wait_seconds: float = 600.0
    env_modules: tuple[str, ...] = ()
    lease_seconds: float = 3600.0
    server_id: str = ""


class RayConnection:
    """Connects this process to a cluster, once for all who ask. Safe to use from any thread."""

    def __init__(self, options: RayOptions) -> None:
        self._options = options
        # Guards what follows.
        self._lock = threading.Lock()
        self._attempt: futures.Future[Any] | None = None

    def open(self, check: Callable[[], None]) -> Any:
        """Return the module ``ray``, connected to the cluster.

        :param check: Called again and again while that takes long; what it raises ends the waiting.
        :raises ClusterLostError: If the cluster cannot be reached.
        """
        with self._lock:
            if self._attempt is None or (self._attempt.done() and self._attempt.exception() is not None):
                self._attempt = futures.Future()
                # It cannot be interrupted; only the waiting for it can end early.
                threading.Thread(target=self._connect, args=(self._attempt,), name="grpo-ray", daemon=True).start()
            attempt = self._attempt
        deadline = time.monotonic() + _CONNECT_SECONDS
        while not futures.wait([attempt], _WATCH_SECONDS).done:
            check()
            if time.monotonic() > deadline:
                raise self._make_error(f"no answer within {_CONNECT_SECONDS:g} s")
        error = attempt.exception()
        if error is not None:
            raise self._make_error(" ".join(str(error).split())[:300]) from error
        return attempt.result()

    def close(self) -> None:
        """Leave the cluster, unless others of this process use it."""
        with _RAY_LOCK:
            if id(self) in _users:
                _users.discard(id(self))
                if not _users:
                    importlib.import_module("ray").shutdown()

    def _make_error(self, reason: str) -> ClusterLostError:
        where = self._options.address or "of this machine"
        return ClusterLostError(f"the Ray cluster {where} cannot be used ({reason}); see docs/cluster.md.")

    def _connect(self, attempt: "futures.Future[Any]") -> None:
        try:
            attempt.set_result(_connect(self, self._options))
        except BaseException as error:  # Ray documents no base class for its errors
            logger.warning("the Ray cluster cannot be used", exc_info=True)
            attempt.set_exception(error)


def cut(error: BaseException) -> str:
    """Return the first line of what Ray says of an error, which may go on for pages."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def _connect(user: RayConnection, options: RayOptions) -> Any:
    """Import Ray, and connect it to the cluster if that has not happened."""
    with _RAY_LOCK:
        if options.address is None or options.address.rpartition(":")[0] in _LOOPBACK_HOSTS:
            os.environ.setdefault(_LOOPBACK_VARIABLE, "0")  # Ray reads it when it is imported
        # Else a job's thread that ends after the server has left the cluster would start another one.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        # Ray would print a trace when a signal ends the server, as if that were a crash.
        os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
        ray = importlib.import_module("ray")
        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns of much that is as it should be
        if not ray.is_initialized():
            if options.address is None:
                local = {"include_dashboard": False, "object_store_memory": _LOCAL_STORE_BYTES}
                ray.init(address="local", configure_logging=False, **local)
            else:
                _probe(options.address)
                runtime_env = {"py_modules": _list_modules(options.env_modules), "excludes": ["__pycache__"]}
                ray.init(address=options.address, configure_logging=False, runtime_env=runtime_env)
            _print_plainly()
            _users.add(id(user))
        else:
            _check_is_same(ray, options.address)
            if _users:  # otherwise other code has connected it, and will also disconnect it
                _users.add(id(user))
        ray.cloudpickle.register_pickle_by_value(ray_slot)
        return ray


def _check_is_same(ray: Any, address: str | None) -> None:
    """Refuse a cluster to which other code has connected this process, if another one is meant."""
    connected = str(ray.get_runtime_context().gcs_address)
    if address is None or connected == address:
        return
    ports = {each.rpartition(":")[2] for each in (address, connected)}
    hosts = [_find_addresses(each.rpartition(":")[0]) for each in (address, connected)]
    if len(ports) > 1 or hosts[0].isdisjoint(hosts[1]):
        raise ConnectionError(f"this process is connected to the cluster {connected} already, and Ray knows one")


def _find_addresses(host: str) -> set[str]:
    return {str(found[4][0]) for found in socket.getaddrinfo(host.strip("[]"), None)}


def _print_plainly() -> None:
    """Have what workers print come out here as it is, without Ray's colours, prefixes and own news."""
    dispatcher = importlib.import_module("ray._private.ray_logging").global_worker_stdstream_dispatcher
    dispatcher.remove_handler("ray_print_logs")
    dispatcher.add_handler("grpo", _print)


def _print(printed: Mapping[str, Any]) -> None:
    """Write lines that a process of the cluster has printed."""
    if str(printed.get("actor_name", "")).startswith("Slot"):
        sink = sys.stderr if printed["is_err"] else sys.stdout
        sink.write("".join(f"{line}\n" for line in printed["lines"]))
        sink.flush()


def _probe(address: str) -> None:
    """Notice at once what Ray would look for for minutes."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), _PROBE_SECONDS):
        pass


def _list_modules(env_modules: Sequence[str]) -> list[str]:
    """List the files and folders of the server's own modules and of the operator's that are no installed packages."""
    found = []
    for name in dict.fromkeys([*_OWN_MODULES, *(name.partition(".")[0] for name in env_modules)]):
        spec = util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        path = Path(spec.origin)
        path = path.parent if path.name == "__init__.py" else path
        if name in _OWN_MODULES or "site-packages" not in path.parts:
            found.append(str(path))
    return found
