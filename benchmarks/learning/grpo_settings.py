"""The settings of this project's GRPO, and how to make a model from them."""

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.lib.runs import Settings
from grpo import GRPO
from grpo_core.options.presets import get_preset, parse_schedules

# Action groups have one branch per action, and other numbers of steps fill a rollout.
_ACTION_SETTINGS: dict[str, Settings] = {
    "CartPole-v1": {"group_size": 2},
    "Acrobot-v1": {"group_size": 3, "n_steps": 288},
    "MountainCar-v0": {"group_size": 3, "n_steps": 3840},
    "FrozenLake-v1": {"group_size": 4},
}


def get_grpo_settings(env_name: str) -> Settings:
    """Return the settings of an environment's preset.

    :raises KeyError: If it has none.
    """
    preset = get_preset(env_name)
    if preset is None:
        raise KeyError(f"{env_name} has no preset in grpo_core/options/presets.yml.")
    normalize = {} if preset.normalize is None else {"normalize": dict(preset.normalize)}
    return {"n_envs": preset.n_envs, **normalize, **preset.arguments}


def get_action_settings(env_name: str) -> Settings | None:
    """Return the settings of an environment for groups of enumerated actions; None without any."""
    if env_name not in _ACTION_SETTINGS:
        return None
    return get_grpo_settings(env_name) | {"group_mode": "action"} | _ACTION_SETTINGS[env_name]


def make_grpo(env_name: str, settings: Settings, seed: int) -> GRPO:
    """Make a model and its environments.

    :param env_name: Gymnasium id.
    :param settings: Arguments of ``GRPO``, and ``n_envs`` and ``normalize`` as in presets.
    :param seed: Seed of the model and its environments.
    """
    arguments = parse_schedules(settings)
    n_envs, normalize = arguments.pop("n_envs", 1), arguments.pop("normalize", None)
    env: VecEnv = make_vec_env(env_name, n_envs, seed=seed)
    if normalize is not None:
        env = VecNormalize(env, gamma=arguments.get("gamma", 0.99), **normalize)
    return GRPO("MlpPolicy", env, seed=seed, device="cpu", **arguments)
