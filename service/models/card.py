"""Model cards: what a model file says about its model.

A file may come from anywhere, and its metadata can claim anything. Whatever serving depends on was checked when the
file was read. Every other fact is checked here on its own, and left out (null) if it cannot be right.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from grpo_core.environments.env_kwargs import check_env_kwargs
from grpo_core.environments.making import EnvSetup
from grpo_core.environments.wrappers import parse_wrappers
from grpo_core.saving.model_file import MAX_INTEGER, read_count
from service.models.files.folder import FileSignature
from service.models.served import InspectedFile
from service.schemas.fields import ENV_NAME_PATTERN, MAX_ENV_NAME_CHARS
from service.schemas.jobs import EpisodeFigures, FinalEvaluation
from service.schemas.models import ModelCard, ModelLineage, ValueFigures
from service.schemas.training import TrainConfig
from service.spaces import describe_space

_Figures = TypeVar("_Figures", bound=BaseModel)

_ENV_NAME = re.compile(ENV_NAME_PATTERN)
# Chosen, with room: our own files name 33 hyperparameters. A forged one can make no card longer.
_MAX_TEXT_CHARS = 256
_MAX_ENTRIES = 128
_MAX_DEPTH = 4
# A mean of equal numbers may differ from them in the last digits.
_ROUNDING = 1e-6
# Paths on the machine that trained the model. In a job's config it is only a flag, which may be shown.
_PRIVATE = frozenset({"tensorboard_log"})


def make_card(
    name: str,
    file: InspectedFile,
    find_evaluation: Callable[[FileSignature], EpisodeFigures | None] = lambda signature: None,
) -> ModelCard:
    """Describe a model by its file; an unusable file's card holds little but its status.

    :param file: What ``ModelStore.inspect_file`` found in it.
    :param find_evaluation: Looks up this file's latest evaluation; without one, the card shows the file's own.
    """
    _, modified_ns, n_bytes = file.signature
    card = ModelCard(
        name=name,
        status=file.status,
        n_bytes=n_bytes,
        sha256=file.sha256,
        modified_at=datetime.fromtimestamp(modified_ns / 1e9, UTC),
    )
    if file.model is None:
        return card
    actor, meta = file.model.actor, file.model.meta
    facts = {
        "env_name": find_env_name(meta),
        **_describe_setup(meta),
        "observation_space": describe_space(actor.observation_space),
        "action_space": describe_space(actor.action_space),
        "reward_function": _find_reward_function(meta.get("reward_function")),
        "hyperparameters": _pick_facts(meta.get("hyperparameters")),
        "config": _pick_facts(meta.get("config"), TrainConfig.model_fields),
        "network": _pick_facts(meta["network"]),
        "lineage": _find_figures(ModelLineage, meta.get("lineage")),
        "num_timesteps": read_count(meta.get("num_timesteps")),
        "n_updates": read_count(meta.get("n_updates")),
        "n_parameters": actor.n_parameters,
        "normalization": _pick_facts(meta.get("normalization")),
        "evaluation": find_evaluation(file.signature) or _find_evaluation(meta),
        "value_check": _find_figures(ValueFigures, meta.get("value_check")),
        "final_evaluation": _find_figures(FinalEvaluation, meta.get("final_evaluation")),
        "versions": _find_versions(meta.get("versions")),
    }
    return card.model_copy(update=facts)


def find_env_name(meta: Mapping[str, Any]) -> str | None:
    """Return the environment that a model was trained in; None if its file gives no valid name."""
    env_name = meta.get("env_name")
    fits = isinstance(env_name, str) and len(env_name) <= MAX_ENV_NAME_CHARS and _ENV_NAME.fullmatch(env_name)
    return env_name if fits else None


def find_env_setup(meta: Mapping[str, Any]) -> EnvSetup | None:
    """Return the environment that a model was trained in, with its arguments and wrappers.

    :return: None if the file names none, or with what a request could not ask for either: it may come from anywhere.
    """
    env_name = find_env_name(meta)
    try:
        env_kwargs, wrappers = meta.get("env_kwargs") or {}, parse_wrappers(meta.get("wrappers") or [])
        check_env_kwargs(env_kwargs)
    except (ValueError, TypeError, AttributeError):
        return None
    return None if env_name is None else EnvSetup(env_name, env_kwargs, wrappers)


def _describe_setup(meta: Mapping[str, Any]) -> dict[str, Any]:
    setup = find_env_setup(meta)
    return {} if setup is None else {"env_kwargs": dict(setup.env_kwargs), "wrappers": list(setup.wrappers)}


def _find_reward_function(claimed: Any) -> str | list[str] | None:
    names = claimed if isinstance(claimed, list) else [claimed]
    fits = len(names) <= _MAX_ENTRIES and all(map(_is_text, names))
    return claimed if fits else None


def _find_versions(claimed: Any) -> dict[str, str] | None:
    facts = _pick_facts(claimed)
    return None if facts is None else {name: value for name, value in facts.items() if isinstance(value, str)}


def _find_evaluation(meta: Mapping[str, Any]) -> EpisodeFigures | None:
    final_evaluation = _find_figures(FinalEvaluation, meta.get("final_evaluation"))
    if final_evaluation is not None:
        return EpisodeFigures.model_validate(final_evaluation.model_dump())
    return _find_figures(EpisodeFigures, meta.get("evaluation"))


def _find_figures(kind: type[_Figures], claimed: Any) -> _Figures | None:
    try:
        figures = kind.model_validate(_pick_facts(claimed))
    except ValidationError:
        return None
    return None if isinstance(figures, EpisodeFigures) and not _can_be(figures) else figures


def _can_be(figures: EpisodeFigures) -> bool:
    """Return whether some episodes can have these figures: no mean or interval of it lies beyond the least and most."""
    parts = [figures.mean_reward, *(figures.mean_reward_ci95 or ())]
    tolerance = _ROUNDING * max(abs(figures.min_reward), abs(figures.max_reward))
    low, high = figures.min_reward - tolerance, figures.max_reward + tolerance
    return all(low <= part <= high for part in parts) and figures.std_reward <= high - low


def _pick_facts(claimed: Any, known: Iterable[str] | None = None) -> dict[str, Any] | None:
    """Pick the entries of an object that are plain and small enough; None if it is not an object.

    :param known: Names to show; None shows all.
    """
    if not isinstance(claimed, dict):
        return None
    names = [name for name in (claimed if known is None else known) if name in claimed and _is_text(name)]
    public = [name for name in names if name not in _PRIVATE or isinstance(claimed[name], bool)]
    plain = [name for name in public if _is_plain(claimed[name])]
    return {name: claimed[name] for name in plain[:_MAX_ENTRIES]}


def _is_plain(value: Any, depth_left: int = _MAX_DEPTH) -> bool:
    """Return whether a value is a JSON value that is finite, short and not nested deeply."""
    if isinstance(value, list | dict):
        parts = [*value.values(), *value] if isinstance(value, dict) else value
        return depth_left > 0 and len(parts) <= 2 * _MAX_ENTRIES and all(_is_plain(x, depth_left - 1) for x in parts)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) <= MAX_INTEGER
    return value is None or _is_text(value)


def _is_text(value: Any) -> bool:
    # Lone surrogates, which UTF-8 cannot encode, are not printable.
    return isinstance(value, str) and len(value) <= _MAX_TEXT_CHARS and value.isprintable()
