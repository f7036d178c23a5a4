"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable
from itertools import islice

# With fewer characters, too many names begin alike.
_MIN_BEGINNING_CHARS = 3
# A longer name is no typo, and the time to compare two names grows with their length.
_MAX_CHARS = 100
_MAX_KNOWN = 2000


def list_close(name: str, known: Iterable[str], n_most: int = 3) -> list[str]:
    """List the known names that resemble a name, ignoring case, the closest first; or else begin with it.

    :param known: Only the first 2,000 are compared.
    :param n_most: Maximum number of names.
    """
    if len(name) > _MAX_CHARS:
        return []
    by_folded = {candidate.casefold(): candidate for candidate in islice(known, _MAX_KNOWN)}
    close = difflib.get_close_matches(name.casefold(), by_folded, n_most)
    if not close and len(name) >= _MIN_BEGINNING_CHARS:
        close = [folded for folded in by_folded if folded.startswith(name.casefold())][:n_most]
    return [by_folded[folded] for folded in close]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question like ``"did you mean 'CartPole-v1'?"``; empty if no known name is close."""
    close = [f"'{candidate}'" for candidate in list_close(name, known)]
    if not close:
        return ""
    return f"did you mean {', '.join(close[:-1])}{' or ' if len(close) > 1 else ''}{close[-1]}?"
