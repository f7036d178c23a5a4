"""From a request to a complete configuration: everything is filled in and checked before a job starts."""

import math
import re
import secrets
from collections.abc import Mapping, Sequence, Set
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.options.choices import NEEDS_VALUES
from grpo_core.options.hyperparameters import HYPERPARAMETERS
from grpo_core.options.policy_kwargs import choose_policy
from grpo_core.options.presets import Preset, get_preset, list_presets
from grpo_core.options.rewards import ENVIRONMENT_REWARD, RewardFunction, can_score, get_default_reward
from grpo_core.options.rewards import REWARD_FUNCTIONS as CARTPOLE_REWARDS
from grpo_core.simulators.bank import find_obstacle
from grpo_core.spaces import UnsupportedSpaceError, check_action_space, check_observation_space
from service.errors import InvalidRequestError, printable
from service.schemas.fields import MAX_OBSERVATION_NUMBERS, MAX_SEED
from service.schemas.training import Normalization, TrainConfig, TrainRequest
from service.suggestions import suggest
from service.training.memory_limits import check_memory, count_observed_numbers
from service.training.train import Reward, build_model, make_env, train_policy
from service.workers.task import Task

# The preset that fills in nothing.
NO_PRESET = "none"
# Long enough for an action on CartPole to show in position and angle, short enough to keep the noise of returns low.
_PREFERRED_HORIZON = 16
# The algorithm's own, which a preset may leave as it is.
_PRESET_HORIZON = 32
_MAX_STEPS = HYPERPARAMETERS["n_steps"].request_most
_MAX_GROUP_SIZE = HYPERPARAMETERS["group_size"].request_most
_MAX_REASON_CHARS = 1000
# Made over a job whose rules need evaluations, unless it says otherwise.
_N_EVALUATIONS = 20
_MAX_EVALUATIONS = 1000

Settings = dict[str, Any]


class TrainingPlan(NamedTuple):
    """A job that can be started.

    :param config: What it trains with.
    :param reward: The reward functions that the configuration names.
    :param warnings: What the client should know of it.
    :param reward_threshold: What an episode earns where the environment counts as solved; None if it does not say.
    """

    config: TrainConfig
    reward: Reward
    warnings: tuple[str, ...]
    reward_threshold: float | None

    def make_task(self, run_dir: Path | None = None) -> Task:
        """Make what an executor runs.

        :param run_dir: Folder to write for TensorBoard; None writes none.
        """
        names = ", ".join(self.config.reward_functions or [str(self.config.reward_function_type)])
        foreign = {f"reward function '{names}'": self.reward}
        function = partial(train_policy, run_dir=run_dir)
        return Task(function, (self.config, self.reward), self.config.env_name, foreign)


class _Rewards(NamedTuple):
    """What is trained on.

    :param names: Values of the two fields that name it.
    :param functions: What ``GRPO`` takes.
    :param is_own: Whether it is the environment's own reward alone.
    :param is_dense: Whether every step is judged by itself.
    """

    names: Settings
    functions: Reward
    is_own: bool
    is_dense: bool


def resolve_request(request: TrainRequest, reward_functions: Mapping[str, RewardFunction]) -> TrainingPlan:
    """Fill in every default and check everything that can be checked before training.

    :param reward_functions: The reward functions known by name.
    :raises InvalidRequestError: If the request names what does not exist or combines what does not fit.
    """
    _check_registered(request.env_name)
    if request.tensorboard_log and find_spec("tensorboard") is None:
        raise InvalidRequestError(
            "tensorboard_log=true needs the package tensorboard, which this server lacks; have it installed (pip "
            "install tensorboard), or send false."
        )
    rewards = _resolve_rewards(request, reward_functions)
    preset_name, preset = _find_preset(request, rewards)
    # A null stands for what is left out.
    given = {name: value for name in request.model_fields_set if (value := getattr(request, name)) is not None}
    identity = {
        **rewards.names,
        "preset": preset_name,
        "model_name": request.model_name or _generate_model_name(request.env_name),
        "seed": secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        "device": _resolve_device(request.device),
    }
    defaults = _list_defaults(rewards) if preset is None else _list_preset_defaults(preset)
    env = _make_env(request.env_name)
    try:
        return _plan(env, defaults, given, identity, rewards)
    except (InvalidRequestError, ValueError) as error:
        filled_in = {name for name, value in defaults.items() if value is not None} - given.keys()
        from_preset = set() if preset is None else filled_in
        raise InvalidRequestError(_explain(str(error), preset_name, from_preset)) from error
    finally:
        env.close()


def _plan(
    env: gym.Env[Any, Any], defaults: Settings, given: Settings, identity: Settings, rewards: _Rewards
) -> TrainingPlan:
    """Fit what was left out to what was given and to the environment, and try the result out.

    :raises ValueError: Whatever the algorithm refuses.
    """
    vec_env = DummyVecEnv([lambda: env])
    settings = {**defaults, **given, **identity}
    warnings = _settle_mode(settings, vec_env)
    _fit_credit(settings, given)
    _fit_groups(settings, given, defaults, env.action_space)
    _fit_evaluations(settings)
    max_episode_steps = env.spec.max_episode_steps if env.spec else None
    if settings["group_mode"] == "episode" and settings["horizon"] is None and max_episode_steps is None:
        raise InvalidRequestError(
            f"env_name '{settings['env_name']}' has no time limit, so that a whole episode may never end: register it "
            f"with max_episode_steps, or send horizon. {' '.join(warnings)}".rstrip()
        )
    if settings["net_arch"] is None:
        settings["net_arch"] = [] if choose_policy(env.observation_space) == "CnnPolicy" else [64, 64]
    config = TrainConfig(**{name: settings[name] for name in TrainConfig.model_fields})
    _try_out(config, vec_env, rewards.functions, max_episode_steps)
    n_numbers = count_observed_numbers(env.observation_space)
    if n_numbers > MAX_OBSERVATION_NUMBERS:
        warnings.append(
            f"observations have {n_numbers} numbers, and POST /inference takes {MAX_OBSERVATION_NUMBERS} at most: the "
            "model file can be used with GRPO.load alone."
        )
    threshold = env.spec.reward_threshold if env.spec else None
    return TrainingPlan(config, rewards.functions, tuple(warnings), threshold)


def _try_out(config: TrainConfig, env: DummyVecEnv, reward: Reward, max_episode_steps: int | None) -> None:
    """Build what would be trained, without training it: only the algorithm itself knows all that it refuses."""
    config = config.model_copy(update={"device": "cpu"})
    check_memory(config, build_model(config, env, reward, _init_setup_model=False), max_episode_steps)
    # Drawing orthogonal weights takes up to half a second, which nobody needs here.
    build_model(config, env, reward, policy_kwargs={"ortho_init": False})


def _explain(detail: str, preset_name: str, from_preset: Set[str]) -> str:
    """Say which of the settings that an error names came from a preset."""
    names = [name for name in sorted(from_preset) if re.search(rf"\b{name}\b", detail)]
    detail = printable(detail, _MAX_REASON_CHARS)
    if not names:
        return detail
    return f'{detail} Preset \'{preset_name}\' chose {", ".join(names)}; send your own, or "preset": "{NO_PRESET}".'


def _check_registered(env_name: str) -> None:
    if env_name in gym.registry:
        return
    hint = suggest(env_name, gym.registry) or "gymnasium.registry lists what is installed."
    raise InvalidRequestError(f"env_name '{env_name}' is not a registered Gymnasium environment; {hint}")


def _resolve_rewards(request: TrainRequest, reward_functions: Mapping[str, RewardFunction]) -> _Rewards:
    field, weights = "reward_function_type", request.reward_functions
    if weights is not None and request.reward_function_type is not None:
        raise InvalidRequestError("reward_functions and reward_function_type exclude each other; send one of them.")
    name = request.reward_function_type
    if name is None:
        name = get_default_reward(request.env_name)
    if weights is not None:
        field = "reward_functions"
    for each in [name] if weights is None else weights:
        _check_reward_name(field, each, request.env_name, reward_functions)
    functions = [reward_functions.get(each) if each != ENVIRONMENT_REWARD else None for each in weights or [name]]
    return _Rewards(
        names={"reward_function_type": name if weights is None else None, "reward_functions": weights},
        functions=functions[0] if weights is None else functions,
        is_own=functions == [None] and weights is None,
        is_dense=all(function in CARTPOLE_REWARDS.values() for function in functions),
    )


def _check_reward_name(field: str, name: str, env_name: str, reward_functions: Mapping[str, RewardFunction]) -> None:
    if name == ENVIRONMENT_REWARD:
        return
    if name not in reward_functions:
        raise _refuse_name(field, name, [ENVIRONMENT_REWARD, *sorted(reward_functions)])
    if not can_score(reward_functions[name], env_name):
        raise InvalidRequestError(
            f"{field} '{name}' reads CartPole's observations and cannot score {env_name}; leave it out or send "
            f"'{ENVIRONMENT_REWARD}' for the environment's own reward."
        )


def _find_preset(request: TrainRequest, rewards: _Rewards) -> tuple[str, Preset | None]:
    name = request.preset
    if name is None:
        preset = get_preset(request.env_name) if rewards.is_own else None
        return (NO_PRESET, None) if preset is None else (request.env_name, preset)
    if name == NO_PRESET:
        return NO_PRESET, None
    preset = get_preset(name)
    if preset is None:
        raise _refuse_name("preset", name, [NO_PRESET, *list_presets()])
    return name, preset


def _list_defaults(rewards: _Rewards) -> Settings:
    """List what is filled in without a preset; a horizon is only aimed at."""
    # Where a dense reward judges every step, a branch's own rewards say enough; elsewhere the value network has to
    # tell what a branch that was cut would still have earned.
    credit = {"baseline": "group", "bootstrap_value": False} if rewards.is_dense else {}
    # Falling to 0: the last updates then settle the policy instead of unsettling it. On CartPole this took every seed
    # to 475 or more; see benchmarks/README.md.
    rate = {"lr_schedule": "linear"}
    return {**_list_library_defaults(), **_list_request_defaults(), **rate, **credit, "horizon": _PREFERRED_HORIZON}


def _list_preset_defaults(preset: Preset) -> Settings:
    """List what is filled in with a preset: what it leaves open, the algorithm's own defaults decide."""
    settings = preset.make_arguments()
    if isinstance(settings.get("learning_rate"), LinearSchedule):
        settings |= {"learning_rate": settings["learning_rate"].start, "lr_schedule": "linear"}
    settings |= settings.pop("policy_kwargs", {})
    normalize = False if preset.normalize is None else Normalization(**preset.normalize)
    return {
        **_list_request_defaults(),
        **_list_library_defaults(),
        "total_timesteps": preset.n_timesteps,
        "n_envs": preset.n_envs,
        "normalize": normalize,
        "horizon": _PRESET_HORIZON if preset.arguments.get("group_mode") != "episode" else None,
        **settings,
    }


def _list_library_defaults() -> Settings:
    arguments = {name: row.default for name, row in HYPERPARAMETERS.items()}
    others = {"lr_schedule": "constant", "normalize": False, "activation": "tanh", "log_std_init": 0.0}
    rules = dict.fromkeys(("eval_freq", "keep_best", "stop_reward", "patience", "max_seconds"))
    return {**arguments, **others, **rules, "tensorboard_log": False}


def _list_request_defaults() -> Settings:
    defaults = {name: value for name, value in TrainRequest().model_dump().items() if value is not None}
    return {**defaults, "net_arch": None}  # which depends on the observations


def _settle_mode(settings: Settings, env: DummyVecEnv) -> list[str]:
    """Decide how groups are played.

    :return: Why they are not played as they usually are, if they are not.
    """
    env_name, mode = settings["env_name"], settings["group_mode"]
    settings["normalize"] = Normalization() if settings["normalize"] is True else settings["normalize"]
    if mode == "episode":
        return []
    try:
        obstacle = find_obstacle(env)
    except (Exception, SystemExit) as error:  # the environment's own code was tried out
        raise InvalidRequestError(
            f"env_name '{env_name}' failed when its steps were tried out ({type(error).__name__}); mend it, or send "
            "group_mode 'episode'."
        ) from error
    if mode == "auto":
        settings["group_mode"] = "branch" if obstacle is None else "episode"
    elif obstacle is not None:
        raise InvalidRequestError(f"env_name '{env_name}' cannot be trained with group_mode '{mode}': {obstacle}")
    if obstacle is None:
        return []
    return [f"{obstacle} Groups are whole episodes from one seeded reset instead, as with group_mode 'episode'."]


def _fit_credit(settings: Settings, given: Settings) -> None:
    """Choose how steps are credited so that it fits what the request says of it."""
    without_values = given.get("supervision") == "outcome" or given.get("bootstrap_value") is False
    if without_values and "baseline" not in given and settings["baseline"] in NEEDS_VALUES:
        settings["baseline"] = "group"
    if settings["baseline"] in NEEDS_VALUES:
        needed = {"bootstrap_value": True, "supervision": "process"}
        settings |= {name: value for name, value in needed.items() if name not in given}


def _fit_groups(settings: Settings, given: Settings, defaults: Settings, action_space: spaces.Space[Any]) -> None:
    """Choose sizes that fit each other where the request leaves them out."""
    mode, horizon = settings["group_mode"], given.get("horizon")
    if mode == "episode":
        settings["horizon"] = horizon or (defaults["horizon"] if defaults["group_mode"] == "episode" else None)
        return
    if mode == "action" and isinstance(action_space, spaces.Discrete) and "group_size" not in given:
        settings["group_size"] = int(action_space.n)
    if settings["group_size"] > _MAX_GROUP_SIZE:
        raise InvalidRequestError(
            f"group_mode 'action' plays all {settings['group_size']} actions of env_name '{settings['env_name']}', and "
            f"a group has at most {_MAX_GROUP_SIZE} branches; take group_mode 'branch'."
        )
    group_size, aim = settings["group_size"], defaults["horizon"] or _PRESET_HORIZON
    if "n_steps" not in given and settings["n_steps"] % (group_size * (horizon or 1)):
        group_steps = group_size * (horizon or aim)
        nearest = max(1, round(settings["n_steps"] / group_steps)) * group_steps
        settings["n_steps"] = nearest if nearest <= _MAX_STEPS else settings["n_steps"]
    settings["horizon"] = _fit_horizon(settings["n_steps"], group_size, horizon, aim)


def _fit_evaluations(settings: Settings) -> None:
    """Choose when the policy is evaluated where a rule needs that, and whether the best one is kept."""
    total_timesteps, eval_freq = settings["total_timesteps"], settings["eval_freq"]
    has_rule = settings["stop_reward"] is not None or settings["patience"] is not None
    if eval_freq is None and (has_rule or settings["keep_best"]):
        # A rollout is learnt from as a whole, so that there is nothing new to evaluate in it.
        at_least = settings["n_steps"] * settings["n_envs"]
        eval_freq = min(total_timesteps, max(total_timesteps // _N_EVALUATIONS, at_least))
    settings["eval_freq"] = eval_freq
    if settings["keep_best"] is None:
        settings["keep_best"] = eval_freq is not None
    if eval_freq is None:
        return
    if eval_freq > total_timesteps:
        raise InvalidRequestError(
            f"eval_freq={eval_freq} is more than total_timesteps={total_timesteps}, so that no evaluation would come "
            f"before the end; take at most {total_timesteps}."
        )
    if total_timesteps > eval_freq * _MAX_EVALUATIONS:
        raise InvalidRequestError(
            f"eval_freq={eval_freq} evaluates the policy {total_timesteps // eval_freq} times, and a job remembers "
            f"{_MAX_EVALUATIONS} evaluations; take at least {math.ceil(total_timesteps / _MAX_EVALUATIONS)}."
        )


def _fit_horizon(n_steps: int, group_size: int, horizon: int | None, aim: int) -> int:
    """Return the horizon, or the one closest to ``aim`` if it is left open, with which groups fill a rollout."""
    branch_steps, remainder = divmod(n_steps, group_size)
    if remainder or branch_steps == 0:
        nearest = max(1, round(n_steps / group_size)) * group_size
        raise InvalidRequestError(
            f"n_steps={n_steps} does not hold whole groups of group_size={group_size} branches; take "
            f"n_steps={nearest} or another group_size."
        )
    if horizon is None:
        divisors = [n for n in range(1, branch_steps + 1) if branch_steps % n == 0]
        return min(divisors, key=lambda n: abs(math.log(n / aim)))
    if branch_steps % horizon:
        group_steps = group_size * horizon
        nearest = max(1, round(n_steps / group_steps)) * group_steps
        take = f"take n_steps={nearest}, or " if nearest <= _MAX_STEPS else ""
        raise InvalidRequestError(
            f"n_steps={n_steps} does not hold whole groups of group_size * horizon = {group_size} * {horizon} = "
            f"{group_steps} steps; {take}leave horizon out."
        )
    return horizon


def _resolve_device(device: str) -> Literal["cpu", "cuda"]:
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InvalidRequestError("device 'cuda' is not available on this server; send 'auto' or 'cpu'.")
    return "cuda" if has_cuda and device != "cpu" else "cpu"


def _make_env(env_name: str) -> gym.Env[Any, Any]:
    """Build the environment to see that it can be built and fits the networks."""
    try:
        env = make_env(env_name)
    except (Exception, SystemExit) as error:  # constructors are foreign code, and a missing extra shows in many ways
        raise InvalidRequestError(
            f"env_name '{env_name}' cannot be created here ({type(error).__name__}); "
            "its optional dependencies may be missing on the server."
        ) from error
    try:
        check_observation_space(env.observation_space)
        check_action_space(env.action_space)
    except UnsupportedSpaceError as error:
        env.close()
        raise InvalidRequestError(f"env_name '{env_name}' cannot be trained: {error}") from error
    return env


def _generate_model_name(env_name: str) -> str:
    # Registered ids may start with a dot or an underscore, which model names may not.
    stem = env_name.replace("/", "-").lstrip("._-")[:80]
    return f"{stem or 'model'}-{secrets.token_hex(4)}"


def _refuse_name(field: str, name: str, known: Sequence[str]) -> InvalidRequestError:
    hint = suggest(name, known)
    return InvalidRequestError(
        f"{field} '{name}' is unknown; {hint + ' Choose' if hint else 'choose'} one of {_list(known)}."
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
