"""The texts that say why an environment is not restored: what differs, where that lies, and what helps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from grpo_core.environments.errors import InvalidEnvironmentError
from grpo_core.environments.nested import Env, name_env
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.proving.preserving import Restorable
from grpo_core.restoring.state import OWN_METHODS

REMEDY = (
    'group_mode="episode" restores nothing and trains it as it is. If the environment is yours, keep all that '
    "step() changes in plain attributes, or give it capture_state() and restore_state(state)."
)
# Errors show observations up to this size.
_MAX_SHOWN_NUMBERS = 16


@contextmanager
def naming(env: Env, problem: str, kind: type[NotBranchableError] = NotBranchableError) -> Iterator[None]:
    """Turn any error of an environment's own code into one that says where it was raised."""
    try:
        yield
    except (NotBranchableError, InvalidEnvironmentError):
        raise
    except Exception as error:  # foreign code
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise kind(
            f"{name_env(env)} cannot be proven to be restored, which branching groups need: {problem} ({reason}). "
            'group_mode="episode" only resets and steps.'
        ) from error


def explain(subject: Restorable, differing: Sequence[str]) -> str:
    """Say what probably is not restored, and what helps.

    :param differing: The attributes that differ right after a restore.
    """
    names = " and ".join(differing)
    if any(layer.means == OWN_METHODS for layer in subject.accesses):
        missing = f"misses something that step() changes{f', {names} for one' if names else ''}"
        return (
            f"Either its capture_state() {missing}, or its restore_state() uses the captured object itself instead of "
            'a copy. Mend them, or use group_mode="episode", which restores nothing.'
        )
    if names:
        return f"Copies of its attributes do not hold {names}. {REMEDY}"
    return (
        "No number, text or array among its attributes differs after a restore, so what does lies elsewhere: in an "
        "object of native code, in a file or another process, in torch's generator, or in the time of day. "
        f"{REMEDY}"
    )


def describe_difference(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    """Describe how a replayed step differs from the first time."""
    names = ("observation", "reward", "terminated", "truncated", "action masks")
    pairs = zip(names, before, after, strict=True)
    name, was, came = next(pair for pair in pairs if not is_same(*pair[1:]))
    is_short = np.size(was) <= _MAX_SHOWN_NUMBERS and not isinstance(was, dict)
    return f"gave {name} {came} instead of {was}" if is_short else f"gave another {name}"


def is_same(before: Any, after: Any) -> bool:
    """Compare observations or steps of any structure; NaN equals NaN, and everything else must be exactly equal."""
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(is_same(value, after[key]) for key, value in before.items())
    if isinstance(before, tuple | list):
        return len(before) == len(after) and all(map(is_same, before, after))
    both = np.asarray(before), np.asarray(after)
    return np.array_equal(*both, equal_nan=both[0].dtype.kind in "fc")
