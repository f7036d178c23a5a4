"""Watches what code under test makes Python do, by its audit events."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What reading a file may never lead to.
FORBIDDEN = frozenset(
    {"pickle.find_class", "exec", "compile", "import", "os.system", "os.exec", "subprocess.Popen", "open"}
)

_seen: list[tuple[str, tuple[Any, ...]]] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in FORBIDDEN:
        _seen.append((event, arguments))


sys.addaudithook(_note)  # there is no way to remove one


@contextmanager
def watch() -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """Collect forbidden events, with their arguments."""
    global _seen
    seen: list[tuple[str, tuple[Any, ...]]] = []
    _seen = seen
    try:
        yield seen
    finally:
        _seen = None
