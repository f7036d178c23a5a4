"""The settings of a job that its request leaves out, with and without a preset."""

from typing import Any

from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.environments.registered_limits import get_time_limit
from grpo_core.options.checks import DEFAULT_HORIZON
from grpo_core.options.hyperparameters import HYPERPARAMETERS
from grpo_core.options.presets import NO_PRESET, Preset, get_preset, list_general_presets, shorten_rollouts
from grpo_core.spaces import list_normalizable
from service.schemas.training import Normalization, TrainRequest
from service.training.planning.memory_limits import shrink
from service.training.planning.names import Rewards

# Two branches of this length fill the 32 steps that a rollout has without a preset. Returns of so few steps have little
# noise, and an action shows in CartPole's position and angle from the second step on.
_PREFERRED_HORIZON = 16

Settings = dict[str, Any]


def choose_defaults(
    rewards: Rewards, preset_name: str, given: Settings, env: DummyVecEnv, obstacle: str | None
) -> Settings:
    """Choose what is filled in, with or without a preset.

    :param given: What the request says itself.
    :param obstacle: Why groups cannot branch in the environment; None if they can, or need not.
    """
    preset = None if preset_name == NO_PRESET else get_preset(preset_name)
    if preset is None:
        return _list_plain_defaults(rewards)
    defaults = _list_preset_defaults(preset)
    if preset_name in list_general_presets():
        n_timesteps: int = {**defaults, **given}["total_timesteps"]
        defaults["n_steps"] = shorten_rollouts(defaults["n_steps"], n_timesteps)
        sizes = {**defaults, **given}
        is_episodic = sizes["group_mode"] == "episode" or obstacle is not None
        shrink(sizes, env.observation_space, get_time_limit(env.envs[0].spec), is_episodic)
        defaults |= {name: sizes[name] for name in ("n_steps", "batch_size") if name not in given}
        if defaults["normalize"] and not list_normalizable(env.observation_space):
            defaults["normalize"] = Normalization(norm_obs=False)
    return defaults


def _list_plain_defaults(rewards: Rewards) -> Settings:
    """List the defaults without a preset; the horizon is only a target."""
    # A dense reward judges every step, so a branch's own rewards are enough; otherwise the value network must estimate
    # what a truncated branch would still have earned.
    credit = {"baseline": "group", "bootstrap_value": False} if rewards.is_dense else {}
    return {
        **_list_common_defaults(),
        # The one default of GRPO that the contract of POST /train replaces.
        "n_steps": TrainRequest.model_fields["n_steps"].default,
        # The rate falls to 0, so that the last updates settle the policy instead of disturbing it. With it, every seed
        # reached 475 on CartPole; see benchmarks/README.md.
        "lr_schedule": "linear",
        **credit,
        "horizon": _PREFERRED_HORIZON,
    }


def _list_preset_defaults(preset: Preset) -> Settings:
    """List the defaults with a preset: what it leaves out was GRPO's own default when it was tuned."""
    return {
        **_list_common_defaults(),
        "horizon": DEFAULT_HORIZON if preset.arguments.get("group_mode") != "episode" else None,
        **list_preset_choices(preset),
    }


def list_preset_choices(preset: Preset) -> Settings:
    """List what a preset says itself."""
    choices = preset.make_arguments()
    if isinstance(choices.get("learning_rate"), LinearSchedule):
        choices |= {"learning_rate": choices["learning_rate"].start, "lr_schedule": "linear"}
    choices |= {**choices.pop("policy_kwargs", {}), "total_timesteps": preset.n_timesteps}
    if preset.n_envs != 1:
        choices["n_envs"] = preset.n_envs
    if preset.normalize is not None:
        choices["normalize"] = Normalization(**preset.normalize)
    return choices


def _list_common_defaults() -> Settings:
    """List the defaults of hyperparameters, which are GRPO's own, and of the other fields of a request."""
    fields = {name: value for name, value in TrainRequest().model_dump().items() if value is not None}
    others = {"lr_schedule": "constant", "normalize": False, "activation": "tanh", "log_std_init": 0.0}
    others |= {"env_kwargs": {}, "wrappers": [], "tensorboard_log": False}
    others |= {"net_arch": None}  # chosen later, since it depends on the observations
    rules = dict.fromkeys(
        ("eval_freq", "keep_best", "stop_reward", "patience", "max_seconds", "checkpoint_every", "init_model")
    )
    return {**fields, **{name: row.default for name, row in HYPERPARAMETERS.items()}, **others, **rules}
