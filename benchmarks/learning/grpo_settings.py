"""The settings of this project's GRPO, and how to make a model from them."""

from inspect import signature

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.lib.runs import Settings
from benchmarks.lib.tasks import Task
from grpo import GRPO
from grpo_core.options.presets import LONG_TIMESTEPS, Preset, get_preset, parse_schedules, shorten_rollouts

# Action groups have one branch per action, and other numbers of steps fill a rollout.
_ACTION_SETTINGS: dict[str, Settings] = {
    "CartPole-v1": {"group_size": 2},
    "Acrobot-v1": {"group_size": 3, "n_steps": 288},
    "MountainCar-v0": {"group_size": 3, "n_steps": 3840},
    "FrozenLake-v1": {"group_size": 4},
}
# Of tasks that have no preset, since only the benchmarks register them: their rewards come at the end of an episode, if
# at all, so that long groups and some entropy are needed to find the first.
_GRIDS: Settings = {
    "n_envs": 8,
    "n_steps": 256,
    "group_size": 4,
    "horizon": 64,
    "batch_size": 256,
    "n_epochs": 4,
    "learning_rate": "lin_0.001",
    "ent_coef": 0.02,
    "restart_probability": 0.1,
}
_TASK_SETTINGS: dict[str, Settings] = {
    "MiniGrid-DoorKey-6x6-flat-v0": _GRIDS,
    # The goal is found at once here: fewer changes and less entropy take the shorter way.
    "MiniGrid-MultiRoom-N2-S4-flat-v0": _GRIDS | {"n_steps": 2048, "ent_coef": 0.01},
    # The general preset's, but for two changes that gain together: the value network takes the policy's step, and no
    # group starts anew while its game goes on.
    "MinAtar-Breakout-flat-v1": {
        "n_envs": 1,
        "n_steps": 512,
        "group_size": 2,
        "horizon": 32,
        "baseline": "adaptive",
        "learning_rate": "lin_0.001",
        "vf_lr_factor": 1.0,
        "ent_coef": 0.05,
    },
}
# Defaults of GRPO when the first runs were stored, which do not name them. They hold for every run that names no other
# value, so that a changed default does not change what was run.
_STORED_DEFAULTS: Settings = {"baseline": "residual", "anchor_selection": "continue"}
# What choose_general_preset answers for a short training, without making the environments.
_GENERAL_PRESETS = {
    **dict.fromkeys(("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "FrozenLake-v1"), "general-discrete"),
    "LunarLander-v3": "general-discrete-episodes",
    **dict.fromkeys(
        ("MiniGrid-DoorKey-6x6-flat-v0", "MiniGrid-MultiRoom-N2-S4-flat-v0", "MinAtar-Breakout-flat-v1"),
        "general-discrete",
    ),
    **dict.fromkeys(
        (
            "Pendulum-v1",
            "MountainCarContinuous-v0",
            "InvertedDoublePendulum-v5",
            "Hopper-v5",
            "Walker2d-v5",
            "HalfCheetah-v5",
            "Swimmer-v5",
            "Ant-v5",
        ),
        "general-continuous",
    ),
}


def get_grpo_settings(env_name: str) -> Settings | None:
    """Return the settings of an environment's preset, or else those found for the task; None if there are none."""
    if env_name in _TASK_SETTINGS:
        return dict(_TASK_SETTINGS[env_name])
    preset = get_preset(env_name)
    return None if preset is None else _to_settings(preset)


def get_general_name(task: Task) -> str:
    """Return the name of the preset that ``POST /train`` takes for a task that has none of its own."""
    name = _GENERAL_PRESETS[task.env_name]
    is_long = name == "general-continuous" and task.total_timesteps >= LONG_TIMESTEPS
    return f"{name}-long" if is_long else name


def get_general_settings(task: Task) -> Settings:
    """Return the settings of the preset that ``POST /train`` takes for a task that has none of its own."""
    preset = get_preset(get_general_name(task))
    assert preset is not None, "get_general_name names presets that there are"
    settings = _to_settings(preset)
    return settings | {"n_steps": shorten_rollouts(settings["n_steps"], task.total_timesteps)}


def _to_settings(preset: Preset) -> Settings:
    normalize = {} if preset.normalize is None else {"normalize": dict(preset.normalize)}
    defaults = {name: signature(GRPO).parameters[name].default for name in _STORED_DEFAULTS}
    arguments = {**defaults, **preset.arguments}
    named = {name: value for name, value in arguments.items() if (name, value) not in _STORED_DEFAULTS.items()}
    return {"n_envs": preset.n_envs, **normalize, **named}


def get_action_settings(env_name: str) -> Settings | None:
    """Return the settings of an environment for groups of enumerated actions; None without any."""
    settings = get_grpo_settings(env_name)
    if settings is None or env_name not in _ACTION_SETTINGS:
        return None
    return settings | {"group_mode": "action"} | _ACTION_SETTINGS[env_name]


def make_grpo(env_name: str, settings: Settings, seed: int) -> GRPO:
    """Make a model and its environments.

    :param env_name: Gymnasium id.
    :param settings: Arguments of ``GRPO``, and ``n_envs`` and ``normalize`` as in presets.
    :param seed: Seed of the model and its environments.
    """
    arguments = parse_schedules(_STORED_DEFAULTS | settings)
    n_envs, normalize = arguments.pop("n_envs", 1), arguments.pop("normalize", None)
    env: VecEnv = make_vec_env(env_name, n_envs, seed=seed)
    if normalize is not None:
        env = VecNormalize(env, gamma=arguments.get("gamma", 0.99), **normalize)
    return GRPO("MlpPolicy", env, seed=seed, device="cpu", **arguments)
