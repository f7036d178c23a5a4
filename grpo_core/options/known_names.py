"""Say which known name a misspelt one may stand for."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec

# A longer name is no typo, and the time to compare two names grows with their length.
_MAX_CHARS = 100
_Given = ParamSpec("_Given")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question like ``"did you mean 'gamma'? "``, with the space after it; empty if no known name is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name[:_MAX_CHARS].casefold(), by_folded, n=1)
    return f"did you mean {by_folded[close[0]]!r}? " if close else ""


def explain_unknown_arguments(init: Callable[_Given, None]) -> Callable[_Given, None]:
    """Make a constructor say what an unknown keyword may stand for, where Python says only that it is unexpected.

    :param init: An ``__init__`` without ``**kwargs``.
    :return: The same with a ``TypeError`` that names the closest argument.
    """
    known = [name for name in inspect.signature(init).parameters if name != "self"]

    @wraps(init)
    def checked(*args: _Given.args, **kwargs: _Given.kwargs) -> None:
        if unknown := [name for name in kwargs if name not in known]:
            raise TypeError(" ".join(_explain(type(args[0]).__name__, name, known) for name in unknown))
        init(*args, **kwargs)

    return checked


def _explain(algorithm: str, name: str, known: Iterable[str]) -> str:
    # Imported here: most programs spell their arguments right, and the server reads options without torch.
    from stable_baselines3 import PPO

    if name in inspect.signature(PPO).parameters:
        return f"{algorithm} has no argument {name!r}, which PPO has; leave it out."
    hint = suggest(name, known).strip() or f"help({algorithm}) lists those that it has."
    return f"{algorithm} has no argument {name!r}; {hint}"
