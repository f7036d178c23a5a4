"""Log lines: one per event, even for text of several lines; in words for people or in JSON for programs."""

import json
import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import structlog
from structlog.typing import EventDict, WrappedLogger

from service.context import JOB_ID, REQUEST_ID

# Pipes and log collectors split longer lines.
MAX_LINE_BYTES = 4096
# The ``extra`` fields that are written; those of other libraries may hold anything.
_EXTRAS = ("method", "route", "status", "seconds", "job_id", "env_name", "model_name")
_LOGGERS = ("grpo", "uvicorn")
# The dashboard's sockets: left without a level, each would get a handler from its library, and write all twice.
_SOCKET_LOGGERS = ("engineio.server", "socketio.server")

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
Fields = dict[str, Any]


class LogStyle(NamedTuple):
    """How a process writes its log.

    :param level: Lowest level for this project and the web server; for other libraries it is always ``warning``.
    """

    log_format: LogFormat = "console"
    level: LogLevel = "info"


def configure_logs(style: LogStyle) -> None:
    """Make all loggers of the process write to standard error, one line per event."""
    handler = logging.StreamHandler()
    handler.setFormatter(make_formatter(style.log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in (*_LOGGERS, *_SOCKET_LOGGERS):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(style.level.upper() if name in _LOGGERS else logging.ERROR)
    logging.captureWarnings(True)


def make_formatter(log_format: LogFormat) -> logging.Formatter:
    """Make a formatter that turns a log record into one line of ASCII, at most 4 KiB long."""
    render = _render_json if log_format == "json" else _render_words
    return structlog.stdlib.ProcessorFormatter(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", key="time"),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            _add_ids,
            structlog.stdlib.ExtraAdder(_EXTRAS),
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _LineRenderer(render),
        ]
    )


def _add_ids(logger: WrappedLogger, method_name: str, event: EventDict) -> EventDict:
    """Add the ids of the request and the job that a line is about."""
    ids = {"request_id": REQUEST_ID.get(), "job_id": JOB_ID.get()}
    return {**event, **{key: value for key, value in ids.items() if value is not None}}


class _LineRenderer:
    """Renders an event, shortening its longest fields until the line fits.

    :param render: Makes a line of ASCII from the fields.
    """

    def __init__(self, render: Callable[[Fields], str]) -> None:
        self._render = render

    def __call__(self, logger: WrappedLogger, method_name: str, event: EventDict) -> str:
        first = ("time", "level", "logger", "event")
        fields = {key: event[key] for key in (*first, *(key for key in event if key not in first))}
        n_chars = MAX_LINE_BYTES
        while True:
            line = self._render({key: _shorten(key, value, n_chars) for key, value in fields.items()})
            if len(line) < MAX_LINE_BYTES:  # the line feed counts too
                return line
            n_chars //= 2


def _shorten(key: str, value: Any, n_chars: int) -> Any:
    if isinstance(value, int | float | None):
        return value
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= n_chars:
        return text
    # The end of a traceback says what happened.
    return f"...{text[-n_chars:]}" if key == "exception" else f"{text[:n_chars]}..."


def _render_json(fields: Fields) -> str:
    return json.dumps(fields).replace("\x7f", "\\u007f")  # the only control character that JSON leaves unescaped


def _render_words(fields: Fields) -> str:
    time, level, logger, event, *others = fields
    words = [str(fields[time]), f"{fields[level]:<7}", f"{fields[logger]}:", _escape(fields[event])]
    return " ".join([*words, *(f"{key}={_quote(fields[key])}" for key in others)])


def _quote(value: Any) -> str:
    text = _escape(f"{value:.6g}" if isinstance(value, float) else str(value))
    return text if text and " " not in text and '"' not in text else '"' + text.replace('"', '\\"') + '"'


def _escape(text: str) -> str:
    """Escape everything but printable ASCII: line feeds, and sequences that terminals take for commands."""
    return text.encode("unicode_escape").decode()
