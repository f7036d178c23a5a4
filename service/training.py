"""From a request to a trained policy: everything is checked first, then GRPO learns."""

import difflib
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import gymnasium as gym
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule

from grpo import GRPO
from grpo_core.actor import UnsupportedSpaceError, count_inputs, count_outputs
from grpo_core.branching import NotBranchableError, Simulator
from grpo_core.rewards import CARTPOLE_ENVIRONMENTS, RewardFunction
from grpo_core.rewards import REWARD_FUNCTIONS as CARTPOLE_REWARDS
from service.errors import InvalidRequestError
from service.schemas import MAX_SEED, TrainConfig, TrainRequest

# The reward_function_type that stands for the environment's own reward.
ENVIRONMENT_REWARD = "environment"
_DEFAULT_CARTPOLE_REWARD = "optimized_cartpole"
# Long enough for an action on CartPole to show in position and angle, short enough to keep the noise of returns low.
_PREFERRED_HORIZON = 16
# What one rollout, and one minibatch on its way through the networks, may take.
_MAX_ROLLOUT_BYTES = 256 * 2**20
_MAX_MINIBATCH_BYTES = 256 * 2**20
# Captured states, anchors and what keeps track of a branch, in Python objects.
_BYTES_PER_BRANCH = 1024
# The checker warns about environments in general; a step through it takes half as long again.
_ENV_KWARGS = {"disable_env_checker": True}


class TrainingProgress(Protocol):
    """What a running training tells whoever started it."""

    def attach(self, stop: Callable[[], None]) -> None:
        """Hand over the function that ends the training early."""

    def advance(self, current_timesteps: int) -> None:
        """Say how many simulator steps were taken."""

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Say what the latest rollout and update measured, under SB3's log keys."""


def resolve_config(request: TrainRequest, reward_functions: Mapping[str, RewardFunction]) -> TrainConfig:
    """Fill in every default and check everything that can be checked before training.

    :param reward_functions: The reward functions known by name.
    :raises InvalidRequestError: If the request names what does not exist or combines what does not fit.
    """
    _check_registered(request.env_name)
    reward_name = _resolve_reward_name(request, reward_functions)
    horizon = _resolve_horizon(request)
    n_numbers_per_step = _check_trainable(request)
    _check_memory(request, horizon, n_numbers_per_step)
    return TrainConfig(
        **request.model_dump(exclude={"reward_function_type", "model_name", "seed", "horizon", "device"}),
        reward_function_type=reward_name,
        model_name=request.model_name or _generate_model_name(request.env_name),
        seed=secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed,
        horizon=horizon,
        device=_resolve_device(request.device),
    )


def train_policy(config: TrainConfig, reward_function: RewardFunction | None, progress: TrainingProgress) -> bytes:
    """Train from the start and return the model file's content; it returns early once it is told to stop.

    :param config: As ``resolve_config`` made it.
    :param reward_function: None takes the environment's own.
    :param progress: Told about the training as it goes.
    :raises Exception: Whatever the environment or the reward function raises.
    """
    env = make_vec_env(config.env_name, config.n_envs, env_kwargs=_ENV_KWARGS)
    # Where a dense reward judges every step, a branch's own rewards say enough; elsewhere the value network
    # has to tell what a branch that was cut would still have earned.
    dense = reward_function in CARTPOLE_REWARDS.values()
    try:
        model = GRPO(
            "MlpPolicy",
            env,
            # Falling to 0: the last updates then settle the policy instead of unsettling it. On CartPole this took
            # every seed to 475 or more; see benchmarks/README.md.
            learning_rate=LinearSchedule(config.learning_rate, 0.0, 1.0),
            n_steps=config.n_steps,
            batch_size=config.batch_size,
            n_epochs=config.n_epochs,
            gamma=config.gamma,
            policy_kwargs={"net_arch": config.net_arch},
            seed=config.seed,
            device=config.device,
            reward_function=reward_function,
            group_size=config.group_size,
            horizon=config.horizon,
            baseline="group" if dense else "residual",
            bootstrap_value=not dense,
        )
        # SB3's own logger would create a folder per training.
        model.set_logger(Logger(folder=None, output_formats=[_MetricsWriter(progress)]))
        model.learn(config.total_timesteps, callback=_ProgressCallback(progress))
        model.logger.dump(model.num_timesteps)  # what the last update measured
        return model.to_bytes(env_name=config.env_name, config=config.model_dump())
    finally:
        env.close()


class _ProgressCallback(BaseCallback):
    """Counts steps, and hands out the stop once ``learn`` has begun (which forgets stops from before)."""

    def __init__(self, progress: TrainingProgress) -> None:
        super().__init__()
        self._progress = progress

    def _on_training_start(self) -> None:
        assert isinstance(self.model, GRPO)
        self._progress.attach(self.model.stop)

    def _on_step(self) -> bool:
        self._progress.advance(self.num_timesteps)
        return True


class _MetricsWriter(KVWriter):
    """Passes finite log values on; the latest value of every key stays visible."""

    def __init__(self, progress: TrainingProgress) -> None:
        self._progress = progress

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        numbers = {key: float(value) for key, value in key_values.items() if not isinstance(value, str)}
        self._progress.publish_metrics({key: number for key, number in numbers.items() if math.isfinite(number)})

    def close(self) -> None:
        """Nothing is open."""


def _check_registered(env_name: str) -> None:
    if env_name in gym.registry:
        return
    close = difflib.get_close_matches(env_name, gym.registry, n=3)
    hint = f"did you mean {_list(close)}?" if close else "gymnasium.registry lists what is installed."
    raise InvalidRequestError(f"env_name '{env_name}' is not a registered Gymnasium environment; {hint}")


def _resolve_reward_name(request: TrainRequest, reward_functions: Mapping[str, RewardFunction]) -> str:
    on_cartpole = request.env_name in CARTPOLE_ENVIRONMENTS
    name = request.reward_function_type
    if name is None:
        return _DEFAULT_CARTPOLE_REWARD if on_cartpole else ENVIRONMENT_REWARD
    if name == ENVIRONMENT_REWARD:
        return name
    if name not in reward_functions:
        known = _list([ENVIRONMENT_REWARD, *sorted(reward_functions)])
        raise InvalidRequestError(f"reward_function_type '{name}' is unknown; choose one of {known}.")
    if reward_functions[name] in CARTPOLE_REWARDS.values() and not on_cartpole:
        raise InvalidRequestError(
            f"reward_function_type '{name}' reads CartPole's observations and cannot score {request.env_name}; "
            f"leave it out or send '{ENVIRONMENT_REWARD}' for the environment's own reward."
        )
    return name


def _resolve_horizon(request: TrainRequest) -> int:
    n_steps, group_size, horizon = request.n_steps, request.group_size, request.horizon
    branch_steps, remainder = divmod(n_steps, group_size)
    if remainder or branch_steps == 0:
        nearest = max(1, round(n_steps / group_size)) * group_size
        raise InvalidRequestError(
            f"n_steps={n_steps} does not hold whole groups of group_size={group_size} branches; take "
            f"n_steps={nearest} or another group_size."
        )
    if horizon is None:
        divisors = [n for n in range(1, branch_steps + 1) if branch_steps % n == 0]
        return min(divisors, key=lambda n: abs(math.log(n / _PREFERRED_HORIZON)))
    if branch_steps % horizon:
        group_steps = group_size * horizon
        nearest = max(1, round(n_steps / group_steps)) * group_steps
        take = f"take n_steps={nearest}, or " if nearest <= 16_384 else ""
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


def _check_trainable(request: TrainRequest) -> int:
    """Build the environment once to see that it can be built, fits the networks and can be restored.

    :return: How many numbers one step of it takes.
    """
    try:
        env = gym.make(request.env_name, **_ENV_KWARGS)
    except (Exception, SystemExit) as error:  # constructors are foreign code, and a missing extra shows in many ways
        raise InvalidRequestError(
            f"env_name '{request.env_name}' cannot be created here ({type(error).__name__}); "
            "its optional dependencies may be missing on the server."
        ) from error
    try:
        Simulator(env)
        return count_inputs(env.observation_space) * 2 + count_outputs(env.action_space)
    except (UnsupportedSpaceError, NotBranchableError) as error:
        raise InvalidRequestError(f"env_name '{request.env_name}' cannot be trained: {error}") from error
    finally:
        env.close()


def _check_memory(request: TrainRequest, horizon: int, n_numbers_per_step: int) -> None:
    n_steps = request.n_envs * request.n_steps
    rollout_bytes = 4 * n_steps * n_numbers_per_step + n_steps // horizon * _BYTES_PER_BRANCH
    if rollout_bytes > _MAX_ROLLOUT_BYTES:
        raise InvalidRequestError(
            f"n_envs * n_steps = {request.n_envs} * {request.n_steps} steps of {request.env_name} in branches of "
            f"{horizon} take {rollout_bytes // 2**20} MiB per rollout, at most {_MAX_ROLLOUT_BYTES // 2**20} are "
            "allowed; lower n_envs or n_steps."
        )
    # Two networks keep every layer's output, and its gradient, until the step is taken.
    minibatch_bytes = 4 * min(request.batch_size, n_steps) * 2 * 2 * sum(request.net_arch)
    if minibatch_bytes > _MAX_MINIBATCH_BYTES:
        raise InvalidRequestError(
            f"batch_size={request.batch_size} with net_arch={request.net_arch} takes {minibatch_bytes // 2**20} MiB "
            f"per minibatch, at most {_MAX_MINIBATCH_BYTES // 2**20} are allowed; lower either."
        )


def _generate_model_name(env_name: str) -> str:
    # Registered ids may start with a dot or an underscore, which model names may not.
    stem = env_name.replace("/", "-").lstrip("._-")[:80]
    return f"{stem or 'model'}-{secrets.token_hex(4)}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
