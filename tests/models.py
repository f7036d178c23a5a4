"""Models and model files that several test modules use."""

import io
import json
import zipfile
from typing import Any

import gymnasium as gym
import pytest

from grpo import GRPO
from grpo_core.options.hyperparameters import HYPERPARAMETERS, Row
from grpo_core.saving import model_file


class PlainGRPO(GRPO):
    """Does everything as ``grpo.py`` shows it, with nothing of ``grpo_core.fast``."""

    use_fast_path = False


with_either_path = pytest.mark.parametrize("algorithm", [GRPO, PlainGRPO], ids=["fast", "plain"])


def make_model(env_id: str, seed: int = 0, **arguments: Any) -> GRPO:
    """Build an untrained model; different seeds give different policies."""
    return GRPO("MlpPolicy", gym.make(env_id), n_steps=64, group_size=2, horizon=32, seed=seed, **arguments)


def change_hyperparameters() -> dict[str, Any]:
    """Choose a value other than its default for every hyperparameter, such that all of them fit each other.

    Those that only continuous actions can have stay as they are.
    """
    sizes = {"group_mode": "branch", "group_size": 3, "horizon": 8, "n_steps": 48, "n_rollout_shards": 2}
    credit = {"baseline": "group", "supervision": "outcome", "bootstrap_value": False, "advantage_scaling": "none"}
    of_boxes = {"antithetic_actions": False}
    return {name: _change(row) for name, row in HYPERPARAMETERS.items()} | sizes | credit | of_boxes


def _change(row: Row) -> Any:
    if row.choices:
        return next(choice for choice in reversed(row.choices) if choice != row.default)
    if row.kind is bool:
        return not row.default
    if row.kind is int:
        return 7 if row.default is None else row.default + 1
    return row.default / 2 if row.default else 0.25


def forge(content: bytes, **facts: Any) -> bytes:
    """Change what a model file's metadata says, as a forger would; a fact in bytes is raw JSON, such as ``b"NaN"``."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(members[model_file.META_MEMBER])
    raw = {name: fact if isinstance(fact, bytes) else json.dumps(fact).encode() for name, fact in facts.items()}
    kept = json.dumps({name: value for name, value in meta.items() if name not in facts}).encode()
    spelled = b"".join(json.dumps(name).encode() + b":" + value + b"," for name, value in raw.items())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, member in {**members, model_file.META_MEMBER: b"{" + spelled + kept[1:]}.items():
            archive.writestr(name, member)
    return file.getvalue()
