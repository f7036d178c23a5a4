"""Fill in and check a training request before its job is queued: a task for a worker."""

import math
import re
from collections.abc import Set
from typing import Any, Literal

import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.banks.choose_bank import find_obstacle
from grpo_core.environments.making import EnvSetup
from grpo_core.environments.registered_limits import get_reward_threshold, get_time_limit
from grpo_core.environments.wrappers import separate_normalization
from grpo_core.groups.group import GroupPlan
from grpo_core.options.checks import get_horizon
from grpo_core.options.choices import COMPARES_IN_GROUPS, NEEDS_VALUES
from grpo_core.options.hyperparameters import HYPERPARAMETERS
from grpo_core.options.policies import choose_policy
from grpo_core.options.presets import (
    GENERAL_PRESET,
    NO_PRESET,
    choose_general_preset,
    fit_sizes,
    get_preset,
    list_general_presets,
)
from grpo_core.shards.sharded_collector import count_shards
from service.environments.build import build_vec_env, try_methods
from service.errors import InvalidRequestError, describe_error, hide_paths, printable
from service.schemas.fields import MAX_OBSERVATION_NUMBERS
from service.schemas.training import ConfigOrigin, Normalization, TrainConfig
from service.spaces import count_numbers
from service.training.build_model import build_model, use_one_thread
from service.training.init_model import check_init, read_init_settings
from service.training.planning.defaults import Settings, choose_defaults, list_preset_choices
from service.training.planning.memory_limits import check_memory
from service.training.planning.names import NamedRequest
from service.training.planning.plan import FilledRequest
from service.workers.task import Progress

_MAX_STEPS = HYPERPARAMETERS["n_steps"].request_most
_MAX_GROUP_SIZE = HYPERPARAMETERS["group_size"].request_most
_MAX_REASON_CHARS = 1000
# Evaluations of a job that needs them and does not say how often.
_N_EVALUATIONS = 20
_MAX_EVALUATIONS = 1000
_NEED_EVALUATIONS = ("eval_freq", "keep_best", "stop_reward", "patience")
# Nothing depends on the two fields that the server fills in, but a configuration that is tried out has them.
_STAND_INS = {"model_name": "any", "seed": 0}


def fill_in_request(named: NamedRequest, progress: Progress) -> bytes:
    """Fill in every default and check everything that can be checked before training.

    :return: A ``FilledRequest`` in JSON.
    :raises InvalidRequestError: If the request combines what does not fit, or the environment cannot be trained.
    """
    use_one_thread()
    request, rewards = named.request, named.rewards
    # A null means the same as leaving the field out.
    given = {name: value for name in request.model_fields_set if (value := getattr(request, name)) is not None}
    given |= _separate_normalization(given)
    identity = {
        "reward_function_type": rewards.reward_function_type,
        "reward_functions": rewards.reward_functions,
        **_STAND_INS,
        "device": _resolve_device(request.device),
    }
    preset_name, defaults = named.preset, Settings()
    env = build_vec_env(EnvSetup(request.env_name, given.get("env_kwargs", {}), given.get("wrappers", [])), 1)
    try:
        try_methods(request.env_name, env.envs[0], request.env_kwargs)
        obstacle = _find_obstacle(request.env_name, env, given.get("group_mode", "auto"))
        if named.preset == GENERAL_PRESET:
            is_restorable = obstacle is None and given.get("group_mode") != "episode"
            preset_name = choose_general_preset(
                env.observation_space, env.action_space, is_restorable, given.get("total_timesteps")
            )
        defaults = choose_defaults(rewards, preset_name, given, env, obstacle)
        if named.init_meta is not None:
            defaults |= read_init_settings(named.init_meta)
        settings = {**defaults, **given, **identity, "preset": preset_name}
        filled = _fit_and_try(env, settings, given, defaults, named, obstacle)
    except (InvalidRequestError, ValueError) as error:
        filled_in = {name for name, value in defaults.items() if value is not None} - given.keys()
        from_preset = set() if preset_name == NO_PRESET else filled_in
        raise InvalidRequestError(_explain(str(error), preset_name, from_preset)) from error
    finally:
        env.close()
    preset = None if preset_name == NO_PRESET else get_preset(preset_name)
    choices = {} if preset is None else {name: defaults[name] for name in list_preset_choices(preset)}
    filled.config_origins = {name: _find_origin(name, value, given, choices) for name, value in filled.settings.items()}
    return filled.model_dump_json().encode()


def _separate_normalization(given: Settings) -> Settings:
    """Turn a wrapper ``normalize`` into the setting of that name.

    :raises InvalidRequestError: If both are there.
    """
    wrappers, options = separate_normalization(given.get("wrappers", []))
    if options is None:
        return {}
    if "normalize" in given:
        raise InvalidRequestError("wrappers ends with 'normalize' and normalize is there too; send one of them.")
    return {"wrappers": wrappers, "normalize": Normalization(**options)}


def _fit_and_try(
    env: DummyVecEnv,
    settings: Settings,
    given: Settings,
    defaults: Settings,
    named: NamedRequest,
    obstacle: str | None,
) -> FilledRequest:
    """Choose the settings that were left out to suit the given ones and the environment, and try them out.

    :param obstacle: Why groups cannot branch in the environment; None if they can, or need not.
    :raises ValueError: If the algorithm refuses them.
    """
    warnings = _fit_mode(settings, given, obstacle)
    _fit_credit(settings, given)
    _fit_groups(settings, given, defaults, env.action_space)
    _fit_evaluations(settings)
    max_episode_steps = get_time_limit(env.envs[0].spec)
    if settings["group_mode"] == "episode" and settings["horizon"] is None and max_episode_steps is None:
        raise InvalidRequestError(
            f"env_name '{settings['env_name']}' has no time limit, so a whole episode might never end; register it "
            f"with max_episode_steps, or send horizon. {' '.join(warnings)}".rstrip()
        )
    if settings["net_arch"] is None:
        settings["net_arch"] = [] if choose_policy(env.observation_space) == "CnnPolicy" else [64, 64]
    config = TrainConfig(**{name: settings[name] for name in TrainConfig.model_fields})
    _try_out(config, env, named, max_episode_steps)
    n_numbers = count_numbers(env.observation_space)
    if n_numbers > MAX_OBSERVATION_NUMBERS:
        warnings.append(
            f"observations have {n_numbers} numbers, and POST /inference takes at most {MAX_OBSERVATION_NUMBERS}: the "
            "model file can only be used with GRPO.load."
        )
    is_chosen = config.device == "cuda" and given.get("device", "auto") == "auto"
    if is_chosen and choose_policy(env.observation_space) == "MlpPolicy":
        warnings.append('training is on the GPU; without images the CPU is often faster: compare with "device": "cpu".')
    threshold = get_reward_threshold(env.envs[0].spec)
    settings = config.model_dump(exclude=set(_STAND_INS))
    return FilledRequest(settings=settings, warnings=warnings, reward_threshold=threshold)


def _find_origin(name: str, value: Any, given: Settings, choices: Settings) -> ConfigOrigin:
    """Say who chose a setting; what a preset chose may have been changed to suit what the request gives."""
    if name in given:
        return "request"
    return "preset" if name in choices and _to_plain(choices[name]) == value else "default"


def _to_plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, Normalization) else value


def _try_out(config: TrainConfig, env: DummyVecEnv, named: NamedRequest, max_episode_steps: int | None) -> None:
    """Build the model without training it, since only the algorithm itself knows everything it refuses."""
    reward = named.rewards.functions
    config = config.model_copy(update={"device": "cpu"})
    check_memory(config, build_model(config, env, reward, _init_setup_model=False), max_episode_steps)
    # The one environment here cannot be shared out as the job's can be.
    _check_shards(config)
    config = config.model_copy(update={"n_rollout_workers": 1, "n_rollout_shards": None})
    # Without orthogonal weights, which take up to half a second and are not used here.
    model = build_model(config, env, reward, policy_kwargs={"ortho_init": False})
    if named.init_meta is not None:
        check_init(model, config, named.init_meta)


def _check_shards(config: TrainConfig) -> None:
    """Check that a job's rollouts can be cut as it says, if its other settings make whole groups at all."""
    mode = config.group_mode
    horizon = get_horizon(config.horizon, mode)
    if mode != "episode" and config.n_steps % (config.group_size * (horizon or 1)) != 0:
        return
    plan = GroupPlan(mode, config.group_size, horizon, config.n_steps)
    count_shards(config.n_rollout_shards, config.n_rollout_workers, config.n_envs, plan)


def _explain(detail: str, preset_name: str, from_preset: Set[str]) -> str:
    """Add to an error which of the settings in it came from a preset."""
    names = [name for name in sorted(from_preset) if re.search(rf"\b{name}\b", detail)]
    detail = printable(hide_paths(detail), _MAX_REASON_CHARS)
    if not names:
        return detail
    return f'{detail} Preset \'{preset_name}\' chose {", ".join(names)}; send your own, or "preset": "{NO_PRESET}".'


def _find_obstacle(env_name: str, env: DummyVecEnv, mode: str) -> str | None:
    if mode == "episode":
        return None
    try:
        return find_obstacle(env, must_pay=mode == "auto")
    except (Exception, SystemExit) as error:  # foreign code: the environment may raise anything
        raise InvalidRequestError(
            f"env_name '{env_name}' failed while its steps were tried out: {describe_error(error)}; fix the "
            "environment. If it fails only where it is restored, send group_mode 'episode'."
        ) from error


def _fit_mode(settings: Settings, given: Settings, obstacle: str | None) -> list[str]:
    """Choose the group mode.

    :return: A warning if groups cannot branch and are whole episodes instead.
    """
    env_name, mode = settings["env_name"], settings["group_mode"]
    settings["normalize"] = Normalization() if settings["normalize"] is True else settings["normalize"]
    is_general = settings["preset"] in list_general_presets()
    if mode == "auto":
        settings["group_mode"] = "branch" if obstacle is None else "episode"
    elif mode != "episode" and obstacle is not None:
        raise InvalidRequestError(f"env_name '{env_name}' cannot be trained with group_mode '{mode}': {obstacle}")
    if obstacle is None or (mode == "episode" and not (is_general and "group_mode" not in given)):
        return []
    return [f"{obstacle} Groups are whole episodes from one seeded reset instead, as with group_mode 'episode'."]


def _fit_credit(settings: Settings, given: Settings) -> None:
    """Choose the credit settings that were left out to suit the given ones."""
    without_values = given.get("supervision") == "outcome" or given.get("bootstrap_value") is False
    if without_values and "baseline" not in given and settings["baseline"] in NEEDS_VALUES:
        settings["baseline"] = "group"
    is_chosen = "baseline" in given or settings["preset"] != NO_PRESET
    if given.get("advantage_scaling") == "group" and not is_chosen and settings["baseline"] not in COMPARES_IN_GROUPS:
        settings["baseline"] = "residual"
    if settings["baseline"] in NEEDS_VALUES:
        needed = {"bootstrap_value": True, "supervision": "process"}
        settings |= {name: value for name, value in needed.items() if name not in given}


def _fit_groups(settings: Settings, given: Settings, defaults: Settings, action_space: spaces.Space[Any]) -> None:
    """Choose sizes that fit each other for those that were left out."""
    settings |= fit_sizes(defaults, given, settings["group_mode"], action_space, _MAX_STEPS)._asdict()
    if settings["group_size"] > _MAX_GROUP_SIZE:
        raise InvalidRequestError(
            f"group_mode 'action' plays all {settings['group_size']} actions of env_name '{settings['env_name']}', and "
            f"a group has at most {_MAX_GROUP_SIZE} branches; send group_mode 'branch'."
        )


def _fit_evaluations(settings: Settings) -> None:
    """Choose how often to evaluate the policy if a rule needs it, and whether to keep the best one."""
    total_timesteps, eval_freq = settings["total_timesteps"], settings["eval_freq"]
    rules = [name for name in _NEED_EVALUATIONS if settings[name] is not None and settings[name] is not False]
    if rules and settings["n_eval_episodes"] == 0:
        raise InvalidRequestError(
            f"n_eval_episodes=0 makes no evaluations, but {rules[0]} needs them; send at least 1, or leave {rules[0]} "
            "out."
        )
    if eval_freq is None and rules:
        # The policy changes only after a whole rollout.
        at_least = settings["n_steps"] * settings["n_envs"]
        eval_freq = min(total_timesteps, max(total_timesteps // _N_EVALUATIONS, at_least))
    settings["eval_freq"] = eval_freq
    if settings["keep_best"] is None:
        settings["keep_best"] = eval_freq is not None
    if eval_freq is None:
        return
    if eval_freq > total_timesteps:
        raise InvalidRequestError(
            f"eval_freq={eval_freq} is more than total_timesteps={total_timesteps}, so no evaluation would come before "
            f"the end; send at most {total_timesteps}."
        )
    if total_timesteps > eval_freq * _MAX_EVALUATIONS:
        raise InvalidRequestError(
            f"eval_freq={eval_freq} evaluates the policy {total_timesteps // eval_freq} times, and a job may have at "
            f"most {_MAX_EVALUATIONS} evaluations; send at least {math.ceil(total_timesteps / _MAX_EVALUATIONS)}."
        )


def _resolve_device(device: str) -> Literal["cpu", "cuda"]:
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InvalidRequestError("device 'cuda' is not available on this server; send 'auto' or 'cpu'.")
    return "cuda" if has_cuda and device != "cpu" else "cpu"
