"""Text for a terminal: tables, names with their values, and nothing that steers it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

_NONE = "-"


def clean(text: str) -> str:
    """Escape control characters, with which a server could steer the terminal; keep newlines and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def tabulate(rows: Sequence[Mapping[str, Any]]) -> str:
    """Align rows below their keys; no rows make an empty text."""
    if not rows:
        return ""
    lines = [list(rows[0]), *([_NONE if cell is None else str(cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def describe_facts(facts: Mapping[str, Any]) -> str:
    """Format names and values one per line, nested values as JSON."""
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {format_fact(fact)}" for name, fact in facts.items())


def format_fact(fact: Any) -> str:
    """Format a value: text as it is, everything else as JSON, nothing as a dash."""
    if fact is None:
        return _NONE
    return fact if isinstance(fact, str) else json.dumps(fact)


def format_counts(counts: Mapping[str, int]) -> str:
    """Format numbers of jobs by their status."""
    return ", ".join(f"{n} {status}" for status, n in counts.items())
