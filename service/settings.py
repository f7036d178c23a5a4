"""The service's settings, and the only reader of the process environment."""

import ipaddress
import os
import re
import socket
import stat
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from grpo_core.environments.packages import is_module_name
from grpo_core.suggestions import suggest
from service.errors import printable
from service.logs import LogFormat, LogLevel, LogStyle

# An API key shorter than this can be guessed over a network.
MIN_API_KEY_LENGTH = 16

_PREFIX = "GRPO_"
# Of the client, of deploy/, and of the server's own processes.
_OTHER_VARIABLES = frozenset({"GRPO_URL", "GRPO_PUBLISHED_PORT", "GRPO_FORKSERVER_START"})
# Nobody waits longer, and no lock can wait for ever.
_MAX_SECONDS = 86_400
_MAX_KEY_FILE_BYTES = 4096
# What an address looks like, and that in words.
_ADDRESS_FORMS = {
    "trainer_url": (re.compile(r"https?://[!-~]+"), "http://HOST:PORT or https://HOST"),
    "models_url": (re.compile(r"[a-z][a-z0-9+.-]*://[ -~]*"), "SCHEME://PATH, such as s3://BUCKET/FOLDER"),
    "ray_address": (re.compile(r"[^\s/]+:[0-9]{1,5}"), "HOST:PORT, such as head:6379"),
}
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?")
# Browsers leave these out of an origin.
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# Any page, which may then read, and that of a page without an origin, such as a file.
_SPECIAL_ORIGINS = frozenset({"*", "null"})


class UnsafeSettingsError(ValueError):
    """The settings would expose the service without protection."""


class Settings(BaseSettings):
    """All settings, each read from ``GRPO_<NAME>``; lists are separated by commas.

    :param host: Address to listen on. Anything but a loopback address needs ``api_key`` or ``allow_insecure``.
    :param port: TCP port.
    :param role: ``all`` trains and serves. ``serve`` is a read-only replica: it answers from models that another server
        trains, and any number of them may listen on one port.
    :param replicas: Number of replicas to start.
    :param metrics_port: Port of each replica's own, besides the shared one: the first of them if there are several.
    :param trainer_url: The server that trains, which replicas name when they refuse a request.
    :param models_url: Folder of an object store, as fsspec writes it, that replicas copy the models from.
    :param models_dir: Folder of the model files, created if absent.
    :param tensorboard_dir: Folder of the jobs' TensorBoard runs, created with the first run.
    :param api_key: Key that clients send as ``Authorization: Bearer`` or ``X-API-Key``; at least 16 characters.
    :param api_key_file: File that holds ``api_key``, for containers and services that get secrets as files.
    :param allow_insecure: Serve a non-loopback address without a key.
    :param allowed_hosts: Host names accepted in the ``Host`` header; ``*`` accepts any.
    :param cors_origins: Web origins, like ``https://example.org``, that may call from a browser; ``*`` lets any page
        read and none change anything. Pages served from localhost always may.
    :param env_modules: Your own modules that register environments or reward functions, imported at the start; the
        current folder is searched too.
    :param executor: Where jobs and other tasks run: in a ``thread`` of the server, in a ``process`` each, on a ``ray``
        cluster, or ``auto``: in processes on Linux, in threads elsewhere.
    :param ray_address: ``host:port`` of a running Ray cluster; None starts one on this machine that ends with the
        server.
    :param ray_gpus_per_job: GPUs of the cluster that a job on ``cuda`` asks for; with a part, several share one.
    :param ray_wait_seconds: Longest time that a job waits for a node of the cluster with room.
    :param ray_lease_seconds: How long jobs go on in a running cluster after their server was killed.
    :param stall_seconds: A running job that takes no simulator step and no update for this long has failed.
    :param task_seconds: Time limit for planning a job, evaluating or filming a policy, or describing an environment.
    :param max_running_jobs: Maximum number of jobs training at the same time.
    :param max_queued_jobs: Maximum number of jobs waiting for a slot; more are refused with 429.
    :param max_kept_jobs: Number of finished jobs that are remembered, across restarts too.
    :param max_kept_days: Age from which finished jobs are forgotten.
    :param max_body_bytes: Largest request body.
    :param max_batch_bytes: Largest request body of ``POST /inference/batch``.
    :param max_upload_bytes: Largest model file that ``PUT /models/{model_name}/file`` accepts.
    :param max_cached_models: Maximum number of models in memory.
    :param max_cached_bytes: Maximum memory that these models may take.
    :param min_free_bytes: Free space on the models' disk below which jobs are refused with 503.
    :param max_models: Largest number of files in the models folder.
    :param max_models_bytes: Largest size of all of them together; the oldest of their earlier versions make room.
    :param max_model_versions: Versions kept of each model, the newest included; those with an alias stay besides.
    :param client_limits: Whether the limits for each client below apply: ``auto`` where ``host`` is not a loopback
        address.
    :param client_requests_per_second: Requests that one address may send.
    :param client_jobs_per_minute: Jobs that one address may start.
    :param client_active_jobs: Jobs of one address that may run or wait.
    :param client_job_timesteps: Largest ``total_timesteps`` of a job, and longest rollout.
    :param client_job_seconds: Largest ``max_seconds`` of a job, and what it is where the request gives none.
    :param client_upload_bytes_per_hour: Model files that one address may upload.
    :param preload: Start the process that workers are forked from right after the start instead of with the first task,
        which is then answered some seconds sooner; it takes 350 MB more from the start.
    :param log_format: ``console`` writes log lines in words, ``json`` writes each as an object.
    :param log_level: Lowest level that is logged; warnings of other libraries always are.
    :param access_log: Log successful requests to ``/inference``, ``/health`` and ``/metrics`` too, which come by the
        thousand.
    :param shutdown_grace_seconds: Time that running jobs get to stop and save when the server shuts down.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    role: Literal["all", "serve"] = "all"
    replicas: int = Field(1, ge=1, le=1024)
    metrics_port: int | None = Field(None, ge=1, le=65535)
    trainer_url: str | None = Field(None, max_length=256)
    models_url: str | None = Field(None, max_length=1024)
    models_dir: Path = Path("models")
    tensorboard_dir: Path = Path("runs")
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    allow_insecure: bool = False
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ("localhost", "127.0.0.1", "::1")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    env_modules: Annotated[tuple[str, ...], NoDecode] = ()
    executor: Literal["auto", "thread", "process", "ray"] = "auto"
    ray_address: str | None = None
    ray_gpus_per_job: float = Field(1.0, gt=0, allow_inf_nan=False)
    ray_wait_seconds: float = Field(600.0, gt=0, le=_MAX_SECONDS, allow_inf_nan=False)
    ray_lease_seconds: float = Field(3600.0, ge=60, le=_MAX_SECONDS, allow_inf_nan=False)
    stall_seconds: float = Field(60.0, gt=0, le=_MAX_SECONDS, allow_inf_nan=False)
    task_seconds: float = Field(60.0, gt=0, le=_MAX_SECONDS, allow_inf_nan=False)
    max_running_jobs: int = Field(default_factory=lambda: min(2, os.cpu_count() or 1), ge=1)
    max_queued_jobs: int = Field(32, ge=0)
    max_kept_jobs: int = Field(10_000, ge=1)
    max_kept_days: float = Field(90.0, gt=0, allow_inf_nan=False)
    max_body_bytes: int = Field(2**20, ge=1024)
    max_batch_bytes: int = Field(8 * 2**20, ge=1024)
    max_upload_bytes: int = Field(32 * 2**20, ge=1024)
    max_cached_models: int = Field(64, ge=1)
    max_cached_bytes: int = Field(512 * 2**20, ge=1)
    min_free_bytes: int = Field(256 * 2**20, ge=0)
    max_models: int = Field(10_000, ge=1)
    max_models_bytes: int = Field(10 * 2**30, ge=1024)
    max_model_versions: int = Field(5, ge=1, le=1000)
    client_limits: Literal["auto", "on", "off"] = "auto"
    client_requests_per_second: int = Field(600, ge=1)
    client_jobs_per_minute: int = Field(10, ge=1)
    client_active_jobs: int = Field(8, ge=1)
    client_job_timesteps: int = Field(10_000_000, ge=1)
    client_job_seconds: float = Field(3600.0, gt=0, le=_MAX_SECONDS, allow_inf_nan=False)
    client_upload_bytes_per_hour: int = Field(2**30, ge=1024)
    preload: bool = False
    shutdown_grace_seconds: float = Field(8.0, gt=0, le=_MAX_SECONDS, allow_inf_nan=False)
    log_format: LogFormat = "console"
    log_level: LogLevel = "info"
    access_log: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_key(cls, values: dict[str, Any]) -> dict[str, Any]:
        file = values.get("api_key_file")
        if file is None:
            return values
        if values.get("api_key") is not None:
            raise ValueError("api_key and api_key_file exclude each other; set only one of them")
        try:
            return {**values, "api_key": _read_small_file(_expand_home(Path(file)))}
        except (OSError, UnicodeDecodeError) as error:
            reason, remedy = str(error), "name a regular file, or set GRPO_API_KEY"
            if isinstance(error, UnicodeDecodeError):
                reason = "it is not UTF-8 text"
            elif error.strerror:
                reason, remedy = error.strerror, "fix the path or its permissions"
            raise ValueError(f"api_key_file {file} cannot be read ({reason}); {remedy}") from error

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        if not self.is_replica:
            given = [name for name in ("metrics_port", "trainer_url", "models_url") if getattr(self, name) is not None]
            given += ["replicas"] * (self.replicas > 1)
            if given:
                raise ValueError(f"{', '.join(given)}: only replicas have this; add --role serve or GRPO_ROLE=serve")
        elif self.replicas > 1 and self.port == 0:
            raise ValueError(f"{self.replicas} replicas share one port, and port 0 gives each another; choose a port")
        elif self.metrics_port is not None and self.metrics_port <= self.port < self.metrics_port + self.replicas:
            raise ValueError(
                f"metrics_port {self.metrics_port} takes {self.replicas} ports, and port {self.port} is among them; "
                "choose another metrics_port"
            )
        elif self.metrics_port is not None and self.metrics_port + self.replicas > 65_536:
            raise ValueError(f"metrics_port {self.metrics_port} has no {self.replicas} ports from there to 65535")
        return self

    @field_validator("host")
    @classmethod
    def _normalize_host(cls, host: str) -> str:
        return _normalize_host(host)

    @field_validator("allowed_hosts", "cors_origins", "env_modules", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator(*_ADDRESS_FORMS)
    @classmethod
    def _check_address(cls, address: str | None, info: ValidationInfo) -> str | None:
        pattern, form = _ADDRESS_FORMS[info.field_name or ""]
        if address is not None and not pattern.fullmatch(address):
            raise ValueError(f"must be written as {form}")
        return address

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not hosts:
            raise ValueError("must name at least one host, such as localhost; no request would be answered")
        for host in hosts:
            if not (host == "*" or _HOST_NAME.fullmatch(host) or _is_ipv6(host.strip("[]"))):
                raise ValueError(
                    f"'{host}' is not the name of a host; write each as in example.org, without scheme, port or "
                    "wildcard, or '*' alone for any"
                )
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _normalize_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_normalize_origin, origins))

    @field_validator("models_dir", "tensorboard_dir", mode="before")
    @classmethod
    def _check_folder(cls, folder: object) -> object:
        if isinstance(folder, str) and not folder.strip():
            raise ValueError("must name a folder; '.' is the current one")
        return folder

    @field_validator("models_dir", "tensorboard_dir")
    @classmethod
    def _expand_folder(cls, folder: Path) -> Path:
        return _expand_home(folder)

    @field_validator("log_format", "log_level", "client_limits", "role", mode="before")
    @classmethod
    def _lowercase(cls, word: object) -> object:
        return word.lower() if isinstance(word, str) else word

    @field_validator("env_modules")
    @classmethod
    def _check_module_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not is_module_name(name):
                raise ValueError(f"'{name}' is not the name of a module; write it as in an import, without '.py'")
        return names

    @field_validator("executor")
    @classmethod
    def _can_run(cls, executor: str) -> str:
        if executor == "process" and not hasattr(os, "fork"):
            raise ValueError("this system cannot fork processes; use 'thread'")
        return executor

    @model_validator(mode="after")
    def _check_ray(self) -> Self:
        if self.executor == "ray" and self.role == "all" and find_spec("ray") is None:
            raise ValueError("Ray is not installed; pip install -r requirements-ray.txt, or use 'process'")
        return self

    @field_validator("api_key", mode="before")
    @classmethod
    def _strip_key(cls, key: object) -> object:
        return key.strip() if isinstance(key, str) else key  # a file's final newline cannot be sent in a header

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < MIN_API_KEY_LENGTH:
            raise ValueError(f"an API key must have at least {MIN_API_KEY_LENGTH} characters")
        if key is not None and not key.get_secret_value().isprintable():
            raise ValueError("an API key must be one line of printable characters, since no header can hold others")
        return key

    @property
    def log_style(self) -> LogStyle:
        """How the service's processes write their logs."""
        return LogStyle(self.log_format, self.log_level)

    @property
    def is_replica(self) -> bool:
        """Whether this server only serves what another one trains."""
        return self.role == "serve"

    @property
    def limits_clients(self) -> bool:
        """Whether each client is limited."""
        return not self._is_loopback() if self.client_limits == "auto" else self.client_limits == "on"

    def check_exposure(self) -> None:
        """Refuse to listen beyond this machine without a key.

        :raises UnsafeSettingsError: If ``host`` is not a loopback address and neither ``api_key`` nor
            ``allow_insecure`` is set.
        """
        if self.api_key is not None or self.allow_insecure or self._is_loopback():
            return
        names_nothing = not _resolve(self.host)
        danger = (
            "the name does not resolve yet, and anyone who can reach the address it gets"
            if names_nothing
            else "it is not this machine alone, and anyone who reaches it"
        )
        raise UnsafeSettingsError(
            f"refusing to serve {printable(self.host)} without protection: {danger} could train, use and delete "
            "models. Set GRPO_HOST=127.0.0.1 or GRPO_API_KEY or GRPO_API_KEY_FILE, or GRPO_ALLOW_INSECURE=1 in a "
            "network you trust."
        )

    def _is_loopback(self) -> bool:
        """Return whether only this machine can reach the host, by the addresses that would be listened on."""
        addresses = _resolve(self.host)
        return bool(addresses) and all(ipaddress.ip_address(address).is_loopback for address in addresses)


def describe_unknown_variables() -> list[str]:
    """Describe the variables that look like settings but are not; they would be ignored without a word."""
    known = {f"{_PREFIX}{name.upper()}" for name in Settings.model_fields} | _OTHER_VARIABLES
    unknown = sorted(name for name in os.environ if name.upper().startswith(_PREFIX) and name.upper() not in known)
    return [f"{printable(name)} is no setting; {_suggest_variable(name)}" for name in unknown]


def _suggest_variable(name: str) -> str:
    # Without what all of them have in common, which would make any two alike.
    known = map(str.upper, Settings.model_fields)
    return suggest(name[len(_PREFIX) :], known, n_most=1, spell=f"{_PREFIX}{{}}".format) or "it is ignored"


def _normalize_host(host: str) -> str:
    """Write the host as it is listened on: of an address's many spellings (127.1, [::1]) the usual one.

    :raises ValueError: If it is neither a name nor an address.
    """
    bare = host.strip()
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    bare = "localhost" if bare.lower() == "localhost." else bare
    addresses = _resolve(bare, socket.AI_NUMERICHOST)
    if addresses:
        address = ipaddress.ip_address(addresses[0])
        # What listens on IPv6 takes no IPv4, which such an address stands for.
        return str(getattr(address, "ipv4_mapped", None) or address)
    if not bare or not bare.isprintable() or set(bare) & set("/:@[] "):
        raise ValueError(
            f"'{printable(host)}' is neither a name nor an address; write it without scheme and port, such as "
            "127.0.0.1 for this machine alone, or 0.0.0.0 for every network"
        )
    return bare


def _resolve(host: str, flags: int = 0) -> list[str]:
    """List the addresses of a host; none if it has none here.

    :param flags: Of ``getaddrinfo``; ``AI_NUMERICHOST`` looks no name up.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError):  # no such name, or none that could be
        return []
    return [str(address[0]) for *_, address in found]


def _is_ipv6(address: str) -> bool:
    try:
        return ipaddress.IPv6Address(address).scope_id is None
    except ValueError:
        return False


def _normalize_origin(origin: str) -> str:
    """Write an origin as browsers send it.

    :raises ValueError: If it is none.
    """
    if origin in _SPECIAL_ORIGINS:
        return origin
    match = _ORIGIN.fullmatch(origin.rstrip("/").lower())
    if match is None:
        raise ValueError(
            f"'{origin}' is not an origin; write each as scheme and host, with its port if it has one, such as "
            "https://example.org"
        )
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" if port in (None, _DEFAULT_PORTS.get(scheme)) else f"{scheme}://{host}:{port}"


def _read_small_file(path: Path) -> str:
    """Read a text, without waiting for a pipe's other end, and not without end.

    :raises OSError: If it cannot be read, is not a regular file, or is too large for a key.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is not a regular file")
        content = file.read(_MAX_KEY_FILE_BYTES + 1)
    if len(content) > _MAX_KEY_FILE_BYTES:
        raise OSError(f"it has more than {_MAX_KEY_FILE_BYTES:,} bytes")
    return content.decode()


def _expand_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"'{path}' names a home folder that is not known; write the whole path") from error
