"""The settings of ``grpo train``: its preset, its options and ``--hyperparams`` combined."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from gymnasium import spaces

from grpo_cli.options import read_literal
from grpo_core.actor.actor import ACTIVATIONS
from grpo_core.options.checks import is_whole
from grpo_core.options.hyperparameters import HYPERPARAMETERS
from grpo_core.options.presets import (
    GENERAL_PRESET,
    NO_PRESET,
    Preset,
    choose_preset_name,
    fit_sizes,
    get_preset,
    list_general_presets,
    list_presets,
    parse_schedules,
    shorten_rollouts,
)
from grpo_core.options.rewards import ENVIRONMENT_REWARD, REWARD_FUNCTIONS, can_score
from grpo_core.suggestions import suggest
from grpo_terminal import UsageError

_DEFAULT_TIMESTEPS = 20_000
# What --hyperparams takes besides the hyperparameters.
_OTHER_NAMES = ("policy", "policy_kwargs", "stats_window_size", "normalize")


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


def choose_settings(
    options: argparse.Namespace,
    env_name: str,
    choose_general: Callable[[bool], tuple[str, spaces.Space[Any]]],
    normalization: Mapping[str, Any] | None = None,
) -> TrainingSettings:
    """Combine the preset with the options and ``--hyperparams``, which override it.

    :param env_name: Full id of the environment.
    :param choose_general: Names the preset for an environment that has none of its own, and returns its action space;
        takes whether groups are to be whole episodes.
    :param normalization: The options of a wrapper ``normalize``; None without one.
    :raises UsageError: If a name is unknown or set twice, or a value does not fit.
    """
    given = _collect_hyperparameters(options)
    if normalization is not None and "normalize" in given:
        raise UsageError("--wrapper normalize and --hyperparams normalize are both there; give one of them.")
    if normalization is not None:
        given["normalize"] = normalization
    reward_function = REWARD_FUNCTIONS.get(options.reward_function)
    if not can_score(reward_function, env_name):
        raise UsageError(
            f"--reward-function {options.reward_function} reads the observations of CartPole, which {env_name} does "
            f"not have; take --reward-function {ENVIRONMENT_REWARD}."
        )
    preset_name, preset = options.preset or choose_preset_name(env_name, reward_function), None
    if preset_name in (GENERAL_PRESET, *list_general_presets()):
        suitable, action_space = choose_general(given.get("group_mode") == "episode")
        preset_name = suitable if preset_name == GENERAL_PRESET else preset_name
        preset = _fit_general(get_preset(preset_name), given, options.total_timesteps, action_space)
    elif preset_name != NO_PRESET:
        preset = get_preset(preset_name)
        if preset is None:
            raise UsageError(f"--preset {preset_name} is not known; choose {_list_preset_choices()}.")
    preset = preset or Preset(n_timesteps=_DEFAULT_TIMESTEPS, policy="", n_envs=1, normalize=None, arguments={})
    policy, normalize = given.pop("policy", preset.policy or None), given.pop("normalize", preset.normalize)
    try:
        arguments = parse_schedules({**preset.arguments, **given})
    except ValueError as error:
        raise UsageError(f"a schedule is written lin_NUMBER, such as lin_0.001: {error}.") from error
    return TrainingSettings(
        preset_name=preset_name,
        n_timesteps=options.total_timesteps or preset.n_timesteps,
        n_envs=options.n_envs or preset.n_envs,
        policy=policy,
        normalize={} if normalize is True else None if normalize is False else normalize,
        arguments=arguments,
    )


def _fit_general(
    preset: Preset | None, given: Mapping[str, Any], n_timesteps: int | None, action_space: spaces.Space[Any]
) -> Preset:
    """Fit the sizes of a general preset to the given ones, as the server does; ``GRPO`` refuses what cannot fit."""
    assert preset is not None, "it was chosen among those that there are"
    arguments = dict(preset.arguments)
    if "n_steps" not in given:
        arguments["n_steps"] = shorten_rollouts(arguments["n_steps"], n_timesteps or preset.n_timesteps)
    sizes = {**arguments, **given}
    if all(is_whole(size) and size > 0 for size in (sizes["n_steps"], sizes["group_size"], sizes["horizon"] or 1)):
        own_mode, mode = arguments.get("group_mode", "branch"), given.get("group_mode", "auto")
        mode = own_mode if mode == "auto" else mode
        arguments |= fit_sizes(arguments, given, mode, action_space)._asdict()
    return replace(preset, arguments=arguments)


def _list_preset_choices() -> str:
    return ", ".join([NO_PRESET, *list_presets(), GENERAL_PRESET, *list_general_presets()])


def _collect_hyperparameters(options: argparse.Namespace) -> dict[str, Any]:
    known = [*HYPERPARAMETERS, *_OTHER_NAMES]
    given = {name: text for name in HYPERPARAMETERS if (text := getattr(options, name)) is not None}
    for pair in options.hyperparams:
        name, sign, text = pair.partition("=")
        if name not in known or not sign:
            hint = suggest(name, known, n_most=1, spell="{}=...".format) or f"choose among {', '.join(known)}."
            raise UsageError(f"--hyperparams {pair} does not set a hyperparameter of GRPO as NAME=VALUE; {hint}")
        if name in given:
            raise UsageError(
                f"--hyperparams {pair} is not allowed: {name} is already set to {given[name]}; leave one out."
            )
        given[name] = text
    return {name: _parse_value(name, text) for name, text in given.items()}


def _parse_value(name: str, text: str) -> Any:
    row = HYPERPARAMETERS.get(name)
    # A choice may be the word "none".
    value = text if row is not None and text in row.choices else read_literal(text)
    if row is not None and row.is_schedule and isinstance(value, str) and not value.startswith("lin_"):
        raise UsageError(
            f"{name}={text!r} is not allowed: write a number, or lin_NUMBER, which falls from it to 0: lin_0.001."
        )
    return value


def resolve_classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the names of classes in ``policy_kwargs`` by the classes, which a command line cannot spell."""
    import torch

    from grpo_core.options.policies import OPTIMIZERS

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
