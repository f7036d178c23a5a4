"""Answer an unknown argument of a constructor with the one that may be meant."""

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec

from grpo_core.suggestions import suggest

# What other interfaces take, and what is written here.
_ELSEWHERE = {
    "n_envs": "pass the environments as env: make_vec_env(env_id, n_envs=4), of stable_baselines3.common.env_util.",
    "total_timesteps": "pass it to learn().",
}
_Given = ParamSpec("_Given")


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
    hint = _ELSEWHERE.get(name) or suggest(name, known, n_most=1) or f"help({algorithm}) lists those that it has."
    return f"{algorithm} has no argument {name!r}; {hint}"
