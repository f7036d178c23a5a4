"""Suggestions for misspelt names."""

import difflib
from collections.abc import Callable, Iterable
from itertools import islice

# With fewer characters, too many names begin alike.
_MIN_BEGINNING_CHARS = 3
# Other libraries' names for our fields, and what people type; no name here looks like ours.
_SYNONYMS = {
    "env": "env_name",
    "environment": "env_name",
    "env_id": "env_name",
    "model": "model_name",
    "name": "model_name",
    "steps": "total_timesteps",
    "timesteps": "total_timesteps",
    "n_timesteps": "total_timesteps",
    "num_timesteps": "total_timesteps",
    "max_steps": "total_timesteps",
    "lr": "learning_rate",
    "discount": "gamma",
    "epochs": "n_epochs",
    "num_envs": "n_envs",
    "num_steps": "n_steps",
    "minibatch_size": "batch_size",
    "entropy_coef": "ent_coef",
    "beta": "kl_coef",
    "num_generations": "group_size",
    "hidden_sizes": "net_arch",
    "layers": "net_arch",
    "reward": "reward_functions",
    "reward_function": "reward_functions",
    "state": "observation",
    "obs": "observation",
    "input": "observation",
    "gpu": "cuda",
}
# A longer name is no typo, and the time to compare two names grows with their length.
_MAX_CHARS = 100
_MAX_KNOWN = 2000


def list_close(name: str, known: Iterable[str], n_most: int = 3) -> list[str]:
    """List the known names that a name may stand for, the likeliest first: another word for it, the closest, ignoring
    case, or else those that begin with it.

    :param known: Only the first 2,000 are compared.
    :param n_most: Maximum number of names.
    """
    if len(name) > _MAX_CHARS:
        return []
    by_folded = {candidate.casefold(): candidate for candidate in islice(known, _MAX_KNOWN)}
    if (meant := _SYNONYMS.get(name.casefold())) in by_folded:
        return [by_folded[meant]]
    close = difflib.get_close_matches(name.casefold(), by_folded, n_most)
    if not close and len(name) >= _MIN_BEGINNING_CHARS:
        close = [folded for folded in by_folded if folded.startswith(name.casefold())][:n_most]
    return [by_folded[folded] for folded in close]


def suggest(name: str, known: Iterable[str], n_most: int = 3, spell: Callable[[str], str] = repr) -> str:
    """Return a question like ``"did you mean 'CartPole-v1'?"``; empty if no known name is close.

    :param n_most: Maximum number of names in it.
    :param spell: How a name is written in it.
    """
    close = [spell(candidate) for candidate in list_close(name, known, n_most)]
    if not close:
        return ""
    return f"did you mean {', '.join(close[:-1])}{' or ' if len(close) > 1 else ''}{close[-1]}?"
