"""The settings of ``grpo train``: its preset, its options and ``--hyperparams`` combined."""

import argparse
import ast
import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from grpo_cli.options import UsageError
from grpo_core.actor.actor import ACTIVATIONS
from grpo_core.options.hyperparameters import HYPERPARAMETERS
from grpo_core.options.rewards import CARTPOLE_ENVIRONMENTS, ENVIRONMENT_REWARD

NO_PRESET = "none"
_DEFAULT_TIMESTEPS = 20_000
# What --hyperparams takes besides the hyperparameters.
_OTHER_NAMES = ("policy", "policy_kwargs", "stats_window_size", "normalize")
_WORDS = {"true": True, "false": False, "none": None, "null": None}


class TrainingSettings(NamedTuple):
    """The settings to train with.

    :param preset_name: Environment whose preset is in use, or ``none``.
    :param n_timesteps: Simulator steps.
    :param n_envs: Number of environments.
    :param policy: Name of the policy; None for the one that suits the observations.
    :param normalize: Arguments of ``VecNormalize``; None trains without.
    :param arguments: Arguments of ``GRPO``.
    """

    preset_name: str
    n_timesteps: int
    n_envs: int
    policy: str | None
    normalize: Mapping[str, Any] | None
    arguments: dict[str, Any]


def choose_settings(options: argparse.Namespace) -> TrainingSettings:
    """Combine the preset, the options and ``--hyperparams``; later ones override earlier ones.

    :raises UsageError: If a name is unknown, or a value does not fit.
    """
    from grpo_core.options.presets import Preset, get_preset, parse_schedules

    given = _collect_hyperparameters(options)
    is_own_reward = options.reward_function == ENVIRONMENT_REWARD
    if not is_own_reward and options.env not in CARTPOLE_ENVIRONMENTS:
        raise UsageError(
            f"--reward-function {options.reward_function} reads the observations of CartPole, which {options.env} "
            f"does not have; take --reward-function {ENVIRONMENT_REWARD}."
        )
    # Presets are tuned to the environment's own reward.
    preset_name = options.preset or (options.env if is_own_reward else NO_PRESET)
    preset = None if preset_name == NO_PRESET else get_preset(preset_name)
    if preset is None and options.preset not in (None, NO_PRESET):
        raise UsageError(f"--preset {options.preset} is not known; choose {_list_preset_choices()}.")
    preset_name = NO_PRESET if preset is None else preset_name
    preset = preset or Preset(_DEFAULT_TIMESTEPS, "", 1, None, {})
    policy, normalize = given.pop("policy", preset.policy or None), given.pop("normalize", preset.normalize)
    try:
        arguments = parse_schedules({**preset.arguments, **given})
    except ValueError as error:
        raise UsageError(f"a schedule is written lin_NUMBER, such as lin_0.001: {error}.") from error
    return TrainingSettings(
        preset_name,
        options.total_timesteps or preset.n_timesteps,
        options.n_envs or preset.n_envs,
        policy,
        {} if normalize is True else normalize or None,
        arguments,
    )


def _list_preset_choices() -> str:
    from grpo_core.options.presets import list_presets

    return ", ".join([NO_PRESET, *list_presets()])


def _collect_hyperparameters(options: argparse.Namespace) -> dict[str, Any]:
    known = [*HYPERPARAMETERS, *_OTHER_NAMES]
    given = {name: text for name in HYPERPARAMETERS if (text := getattr(options, name)) is not None}
    for pair in options.hyperparams:
        name, sign, text = pair.partition("=")
        if name not in known or not sign:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}=...?" if close else f"choose among {', '.join(known)}."
            raise UsageError(f"--hyperparams {pair} does not set a hyperparameter of GRPO as NAME=VALUE; {hint}")
        given[name] = text
    return {name: _parse_value(name, text) for name, text in given.items()}


def _parse_value(name: str, text: str) -> Any:
    """Parse a Python literal, or true, false, none and null in any case; return anything else as a string."""
    if name in HYPERPARAMETERS and text in HYPERPARAMETERS[name].choices:  # one of which may be "none"
        return text
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def resolve_classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the names of classes in ``policy_kwargs`` by the classes, which a command line cannot spell."""
    import torch

    from grpo_core.options.policy_kwargs import OPTIMIZERS

    policy_kwargs = arguments.get("policy_kwargs")
    if not isinstance(policy_kwargs, dict):
        return dict(arguments)
    classes = {
        "activation_fn": {name: getattr(torch.nn, name) for name in ACTIVATIONS},
        "optimizer_class": dict(OPTIMIZERS),
    }
    named = {
        key: classes[key].get(value, value) if key in classes and isinstance(value, str) else value
        for key, value in policy_kwargs.items()
    }
    return {**arguments, "policy_kwargs": named}
