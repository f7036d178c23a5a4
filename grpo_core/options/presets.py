"""Read the presets: tuned hyperparameters per environment, in ``presets.yml`` in rl-baselines3-zoo's format."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

# The zoo's keys that are not arguments of the algorithm.
_NOT_ARGUMENTS = ("n_timesteps", "policy", "n_envs", "normalize")


@dataclass(frozen=True)
class Preset:
    """Tuned settings for one environment.

    :param n_timesteps: Simulator steps to train for.
    :param policy: Name of the policy.
    :param n_envs: Number of environments.
    :param normalize: Arguments of ``VecNormalize`` except ``gamma``; None trains without it.
    :param arguments: Arguments of ``GRPO``, with schedules as text (``"lin_0.001"``).
    """

    n_timesteps: int
    policy: str
    n_envs: int
    normalize: Mapping[str, Any] | None
    arguments: Mapping[str, Any]

    def make_arguments(self) -> dict[str, Any]:
        """Return the arguments of ``GRPO``, with schedules parsed."""
        return parse_schedules(self.arguments)


def get_preset(env_name: str) -> Preset | None:
    """Return the preset of an environment; None if there is none."""
    entry = _read_presets().get(env_name)
    if entry is None:
        return None
    normalize = entry.get("normalize", False)
    return Preset(
        n_timesteps=int(entry["n_timesteps"]),
        policy=entry["policy"],
        n_envs=entry.get("n_envs", 1),
        normalize=({} if normalize is True else normalize) if normalize is not False else None,
        arguments={name: value for name, value in entry.items() if name not in _NOT_ARGUMENTS},
    )


def list_presets() -> list[str]:
    """List the environments that have a preset."""
    return sorted(_read_presets())


@cache
def _read_presets() -> Mapping[str, Mapping[str, Any]]:
    presets: dict[str, dict[str, Any]] = yaml.safe_load((files("grpo_core.options") / "presets.yml").read_text())
    return presets


def parse_schedules(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with schedules parsed: ``"lin_x"`` falls linearly from x to 0.

    :raises ValueError: If ``x`` is not a number.
    """
    # Imported here, since it imports torch and the server reads presets too.
    from stable_baselines3.common.utils import LinearSchedule

    return {
        name: LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
        if isinstance(value, str) and value.startswith("lin_")
        else value
        for name, value in arguments.items()
    }
