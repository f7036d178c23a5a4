"""What a model's file says of itself, as clients are shown it.

A file may come from anywhere, and its metadata can claim anything. What serving depends on was checked when it was
read; every other fact is checked here by itself, and left out (null) if it does not fit.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from service.models.store import ModelStore, Signature
from service.schemas.fields import ENV_NAME_PATTERN, MAX_ENV_NAME_CHARS
from service.schemas.jobs import EpisodeFigures
from service.schemas.models import ModelCard
from service.schemas.training import TrainConfig
from service.spaces import describe_space

_ENV_NAME = re.compile(ENV_NAME_PATTERN)
_MAX_TEXT_CHARS = 256
_MAX_ENTRIES = 128
_MAX_DEPTH = 4
# Every reader of JSON holds integers up to here exactly.
_MAX_INTEGER = 2**53
# Paths on the machine that trained the model; a server's configuration only says whether there was one.
_PRIVATE = frozenset({"tensorboard_log"})


def _find_none(signature: Signature) -> EpisodeFigures | None:
    return None


def make_card(
    store: ModelStore, name: str, find_evaluation: Callable[[Signature], EpisodeFigures | None] = _find_none
) -> ModelCard:
    """Describe a model by its file, which is read in full; where it cannot be used, the card says so and little else.

    :param find_evaluation: Looks up how this very file did in later evaluations; else the card shows the file's own.
    :raises NotFoundError: If there is no model of that name.
    :raises ConflictError: If the disk does not let its file be read.
    """
    seen = store.examine(name)
    _, modified_ns, n_bytes = seen.signature
    card = ModelCard(
        name=name,
        status=seen.status,
        n_bytes=n_bytes,
        sha256=seen.sha256,
        modified_at=datetime.fromtimestamp(modified_ns / 1e9, UTC),
    )
    if seen.model is None:
        return card
    actor, meta = seen.model.actor, seen.model.meta
    facts = {
        "env_name": find_env_name(meta),
        "observation_space": describe_space(actor.observation_space),
        "action_space": describe_space(actor.action_space),
        "reward_function": _find_reward_function(meta.get("reward_function")),
        "hyperparameters": _pick_facts(meta.get("hyperparameters")),
        "config": _pick_facts(meta.get("config"), TrainConfig.model_fields),
        "network": _pick_facts(meta["network"]),
        "num_timesteps": _find_count(meta.get("num_timesteps")),
        "n_updates": _find_count(meta.get("n_updates")),
        "n_parameters": actor.n_parameters,
        "normalization": _pick_facts(meta.get("normalization")),
        "evaluation": find_evaluation(seen.signature) or _find_evaluation(meta.get("evaluation")),
        "versions": _find_versions(meta.get("versions")),
    }
    return card.model_copy(update=facts)


def find_env_name(meta: Mapping[str, Any]) -> str | None:
    """Return the environment that a file says its model was trained in; None if it names none that could be one."""
    env_name = meta.get("env_name")
    fits = isinstance(env_name, str) and len(env_name) <= MAX_ENV_NAME_CHARS and _ENV_NAME.fullmatch(env_name)
    return env_name if fits else None


def _find_reward_function(claimed: Any) -> str | list[str] | None:
    names = claimed if isinstance(claimed, list) else [claimed]
    fits = len(names) <= _MAX_ENTRIES and all(map(_is_text, names))
    return claimed if fits else None


def _find_count(claimed: Any) -> int | None:
    return claimed if type(claimed) is int and 0 <= claimed <= _MAX_INTEGER else None


def _find_versions(claimed: Any) -> dict[str, str] | None:
    facts = _pick_facts(claimed)
    return None if facts is None else {name: value for name, value in facts.items() if isinstance(value, str)}


def _find_evaluation(claimed: Any) -> EpisodeFigures | None:
    try:
        return EpisodeFigures.model_validate(_pick_facts(claimed))
    except ValidationError:
        return None


def _pick_facts(claimed: Any, known: Iterable[str] | None = None) -> dict[str, Any] | None:
    """Pick those entries of an object that are plain and of bearable size; None if it is no object.

    :param known: The names that are shown; None shows all.
    """
    if not isinstance(claimed, dict):
        return None
    names = [name for name in (claimed if known is None else known) if name in claimed and _is_text(name)]
    told = [name for name in names if name not in _PRIVATE or isinstance(claimed[name], bool)]
    shown = [name for name in told if _is_plain(claimed[name])]
    return {name: claimed[name] for name in shown[:_MAX_ENTRIES]}


def _is_plain(value: Any, depth_left: int = _MAX_DEPTH) -> bool:
    """Tell whether a value is of JSON's own kind, finite, short and flat."""
    if isinstance(value, list | dict):
        parts = [*value.values(), *value] if isinstance(value, dict) else value
        return depth_left > 0 and len(parts) <= 2 * _MAX_ENTRIES and all(_is_plain(x, depth_left - 1) for x in parts)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) <= _MAX_INTEGER
    return value is None or _is_text(value)


def _is_text(value: Any) -> bool:
    # Lone surrogates, which UTF-8 cannot spell, are not printable.
    return isinstance(value, str) and len(value) <= _MAX_TEXT_CHARS and value.isprintable()
