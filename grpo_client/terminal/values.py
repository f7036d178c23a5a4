"""Read values as people write them at the command line."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from grpo_terminal import UsageError

# As people write numbers, and JSON does not. What merely begins like one, such as 007 or 1_0, is a word.
_HALF_NUMBER = re.compile(r"-?(\.[0-9]+|(0|[1-9][0-9]*)\.)(e[-+]?[0-9]+)?", re.IGNORECASE)


def read_settings(pairs: Sequence[str], named: dict[str, Any]) -> dict[str, Any]:
    """Read fields that are written as ``KEY=VALUE``.

    :param named: Those that other options set.
    :raises UsageError: If one of them is written otherwise, or set twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name.isidentifier():
            raise UsageError(f"--set {pair} is not allowed: write KEY=VALUE, such as --set gamma=0.98.")
        if name in named:
            raise UsageError(
                f"--set {pair} is not allowed: another option already sets {name} to {named[name]!r}; leave one out."
            )
        if name in settings:
            raise UsageError(f"--set {pair} is not allowed: it sets {name} for the second time; leave one out.")
        settings[name] = _read_value(text)
    return settings


def read_seconds(text: str) -> float:
    """Read a duration.

    :raises argparse.ArgumentTypeError: If it is anything else.
    """
    with suppress(ValueError):
        if (seconds := float(text)) >= 0:
            return seconds
    raise argparse.ArgumentTypeError(f"{text} is not allowed: write a number of seconds, at least 0.")


def _read_value(text: str) -> Any:
    """Read JSON or a number without digits on one side of its point, or else take the text as a word."""
    with suppress(ValueError):
        return _read_number(text) if _HALF_NUMBER.fullmatch(text) else _decode(text)
    return text


def read_json(option: str, text: str | None) -> Any:
    """Read JSON, or nothing.

    :raises UsageError: If it is neither; the message names the option.
    """
    if text is None:
        return None
    try:
        return _decode(text)
    except ValueError as error:
        raise UsageError(f"{option} {text} is not JSON ({error}); write it like [0.1, 0, 0.05, 0].") from error


def read_observation(words: Sequence[str]) -> Any:
    """Read JSON, or numbers that stand beside each other.

    :raises UsageError: If it is neither.
    """
    text = " ".join(words)
    if len(words) > 1:
        with suppress(ValueError):
            return [_decode(word.rstrip(",")) for word in words]
    with suppress(ValueError):
        return _decode(text)
    with suppress(ValueError):
        return _read_numbers(text)
    return read_json("observation", text)


def _read_numbers(text: str) -> Any:
    """Read numbers between commas, blanks and brackets, as NumPy prints them.

    :raises ValueError: If something else is there, or a bracket or a number is missing.
    """
    if re.search(r",\s*,", text):
        raise ValueError("a number is missing between two commas")
    parts = [part if part in "[]" else repr(_read_number(part)) for part in re.findall(r"[][]|[^][,\s]+", text)]
    listed = re.sub(r"(?<!\[) (?!\])", ",", " ".join(parts))
    is_bare_list = "[" not in parts and (len(parts) > 1 or "," in text)
    return _decode(f"[{listed}]" if is_bare_list else listed)


def _read_number(word: str) -> float:
    with suppress(ValueError):
        return int(word)
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"JSON has no {word}")
    return number


def _decode(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_make_object)
    except RecursionError as error:
        raise UsageError(f"{text[:20]}... is nested too deeply; write it like [0.1, 0, 0.05, 0].") from error


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:  # no ValueError: as a word, it would fail elsewhere
            raise UsageError(f"{json.dumps(name)} stands twice in an object of JSON; leave one out.")
        made[name] = value
    return made


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def read_dimension(pair: str) -> tuple[str, Any]:
    """Read what to try of a field: JSON, a range in words, or values between commas.

    :raises UsageError: If no field is named, or nothing to try.
    """
    name, sign, text = pair.partition("=")
    if not sign or not name.isidentifier() or not text:
        raise UsageError(f"--try {pair} is not allowed: write KEY=VALUES, such as --try learning_rate=0.001,0.003.")
    if text[0] in "[{":
        return name, read_json(f"--try {name}", text)
    if (found := re.fullmatch(r"(\w+)\((.*)\)", text)) is None:
        return name, [_read_value(part) for part in text.split(",")]
    numbers = dict(zip(("low", "high", "step"), map(_read_value, found[2].split(",")), strict=False))
    return name, {"distribution": found[1], **numbers}
