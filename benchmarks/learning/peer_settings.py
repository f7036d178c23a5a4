"""The settings of the methods that GRPO is compared with.

They are those of rl-baselines3-zoo 2.9.2 (rl_zoo3/hyperparams/ppo.yml, trpo.yml and ars.yml); ``source`` names the
entry. The task's budget replaces ``n_timesteps``, so that ``"lin_x"`` falls from x to 0 over the budget.
"""

from typing import Any, NamedTuple

from benchmarks.lib.runs import Settings
from benchmarks.lib.tasks import ENV_NAMES

_ZOO = "rl-baselines3-zoo 2.9.2"

# All of the zoo's MiniGrid tasks but two have these; it flattens the mission's text into the observation too.
_PPO_MINIGRID: dict[str, Any] = {
    "normalize": {},
    "n_envs": 8,
    "n_steps": 128,
    "batch_size": 64,
    "gae_lambda": 0.95,
    "gamma": 0.99,
    "n_epochs": 10,
    "ent_coef": 0.0,
    "learning_rate": 2.5e-4,
    "clip_range": 0.2,
}
PPO_ZOO: dict[str, Settings] = {
    "CartPole-v1": {
        "source": f"{_ZOO} ppo.yml CartPole-v1",
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "ent_coef": 0.0,
        "learning_rate": "lin_0.001",
        "clip_range": "lin_0.2",
    },
    "Acrobot-v1": {
        "source": f"{_ZOO} ppo.yml Acrobot-v1",
        "normalize": {},
        "n_envs": 16,
        "n_steps": 256,
        "gae_lambda": 0.94,
        "gamma": 0.99,
        "n_epochs": 4,
        "ent_coef": 0.0,
    },
    "Pendulum-v1": {
        "source": f"{_ZOO} ppo.yml Pendulum-v1",
        "n_envs": 4,
        "n_steps": 1024,
        "gae_lambda": 0.95,
        "gamma": 0.9,
        "n_epochs": 10,
        "ent_coef": 0.0,
        "learning_rate": 1e-3,
        "clip_range": 0.2,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
    "MountainCar-v0": {
        "source": f"{_ZOO} ppo.yml MountainCar-v0",
        "normalize": {},
        "n_envs": 16,
        "n_steps": 16,
        "gae_lambda": 0.98,
        "gamma": 0.99,
        "n_epochs": 4,
        "ent_coef": 0.0,
    },
    "MountainCarContinuous-v0": {
        "source": f"{_ZOO} ppo.yml MountainCarContinuous-v0",
        "normalize": {},
        "n_envs": 1,
        "batch_size": 256,
        "n_steps": 8,
        "gamma": 0.9999,
        "learning_rate": 7.77e-05,
        "ent_coef": 0.00429,
        "clip_range": 0.1,
        "n_epochs": 10,
        "gae_lambda": 0.9,
        "max_grad_norm": 5,
        "vf_coef": 0.19,
        "use_sde": True,
        "policy_kwargs": {"log_std_init": -3.29, "ortho_init": False},
    },
    "InvertedDoublePendulum-v5": {
        "source": f"{_ZOO} ppo.yml InvertedDoublePendulum-v2",
        "normalize": {},
        "n_envs": 1,
        "batch_size": 512,
        "n_steps": 128,
        "gamma": 0.98,
        "learning_rate": 0.000155454,
        "ent_coef": 1.05057e-06,
        "clip_range": 0.4,
        "n_epochs": 10,
        "gae_lambda": 0.8,
        "max_grad_norm": 0.5,
        "vf_coef": 0.695929,
    },
    "LunarLander-v3": {
        "source": f"{_ZOO} ppo.yml LunarLander-v3",
        "n_envs": 16,
        "n_steps": 1024,
        "batch_size": 64,
        "gae_lambda": 0.98,
        "gamma": 0.999,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
    "Hopper-v5": {
        "source": f"{_ZOO} ppo.yml Hopper-v4",
        "normalize": {},
        "n_envs": 1,
        "batch_size": 32,
        "n_steps": 512,
        "gamma": 0.999,
        "learning_rate": 9.80828e-05,
        "ent_coef": 0.00229519,
        "clip_range": 0.2,
        "n_epochs": 5,
        "gae_lambda": 0.99,
        "max_grad_norm": 0.7,
        "vf_coef": 0.835671,
        "policy_kwargs": {
            "log_std_init": -2,
            "ortho_init": False,
            "activation_fn": "ReLU",
            "net_arch": {"pi": [256, 256], "vf": [256, 256]},
        },
    },
    "Walker2d-v5": {
        "source": f"{_ZOO} ppo.yml Walker2d-v4",
        "normalize": {},
        "n_envs": 1,
        "batch_size": 32,
        "n_steps": 512,
        "gamma": 0.99,
        "learning_rate": 5.05041e-05,
        "ent_coef": 0.000585045,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.95,
        "max_grad_norm": 1,
        "vf_coef": 0.871923,
    },
    "HalfCheetah-v5": {
        "source": f"{_ZOO} ppo.yml HalfCheetah-v4",
        "normalize": {},
        "n_envs": 1,
        "batch_size": 64,
        "n_steps": 512,
        "gamma": 0.98,
        "learning_rate": 2.0633e-05,
        "ent_coef": 0.000401762,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.92,
        "max_grad_norm": 0.8,
        "vf_coef": 0.58096,
        "policy_kwargs": {
            "log_std_init": -2,
            "ortho_init": False,
            "activation_fn": "ReLU",
            "net_arch": {"pi": [256, 256], "vf": [256, 256]},
        },
    },
    "Swimmer-v5": {
        "source": f"{_ZOO} ppo.yml Swimmer-v4",
        "normalize": {},
        "n_envs": 4,
        "n_steps": 1024,
        "batch_size": 256,
        "gamma": 0.9999,
        "gae_lambda": 0.98,
        "learning_rate": 6e-4,
    },
    "Ant-v5": {"source": f"{_ZOO} ppo.yml Ant-v4", "normalize": {}},
    "MiniGrid-DoorKey-6x6-flat-v0": {"source": f"{_ZOO} ppo.yml MiniGrid-DoorKey-5x5-v0", **_PPO_MINIGRID},
    "MiniGrid-MultiRoom-N2-S4-flat-v0": {"source": f"{_ZOO} ppo.yml MiniGrid-MultiRoom-N4-S5-v0", **_PPO_MINIGRID},
    "MinAtar-Breakout-flat-v1": {
        "source": f"{_ZOO} ppo.yml atari, without its wrappers, stack of frames and network",
        "n_envs": 8,
        "n_steps": 128,
        "n_epochs": 4,
        "batch_size": 256,
        "learning_rate": "lin_0.00025",
        "clip_range": "lin_0.1",
        "vf_coef": 0.5,
        "ent_coef": 0.01,
    },
    # FrozenLake-v1 has no entry; "ppo_default" is PPO there.
}

# The zoo's settings for the MuJoCo tasks, to which HalfCheetah-v4 adds a larger trust region.
_TRPO_MUJOCO: dict[str, Any] = {
    "normalize": {},
    "n_envs": 2,
    "batch_size": 128,
    "n_steps": 1024,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "sub_sampling_factor": 1,
    "cg_max_steps": 25,
    "cg_damping": 0.1,
    "n_critic_updates": 20,
    "learning_rate": 1e-3,
}
_TRPO_DEFAULTS: Settings = {"source": "sb3-contrib's defaults; the zoo has no entry"}
TRPO_ZOO: dict[str, Settings] = {
    "CartPole-v1": {
        "source": f"{_ZOO} trpo.yml CartPole-v1",
        "n_envs": 2,
        "n_steps": 512,
        "batch_size": 512,
        "cg_damping": 1e-3,
        "gae_lambda": 0.98,
        "gamma": 0.99,
        "learning_rate": 1e-3,
        "n_critic_updates": 20,
    },
    "Acrobot-v1": {"source": f"{_ZOO} trpo.yml Acrobot-v1", "normalize": {}, "n_envs": 2, "n_steps": 1024},
    "Pendulum-v1": {
        "source": f"{_ZOO} trpo.yml Pendulum-v1",
        "n_envs": 2,
        "n_steps": 1024,
        "gamma": 0.9,
        "n_critic_updates": 15,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
    "MountainCar-v0": {
        "source": f"{_ZOO} trpo.yml MountainCar-v0",
        "normalize": {},
        "n_envs": 2,
        "n_steps": 1024,
        "n_critic_updates": 20,
    },
    "FrozenLake-v1": _TRPO_DEFAULTS,
    "LunarLander-v3": {
        "source": f"{_ZOO} trpo.yml LunarLander-v3",
        "n_envs": 2,
        "n_steps": 512,
        "cg_damping": 0.01,
        "gae_lambda": 0.98,
        "gamma": 0.99,
        "learning_rate": 1e-3,
        "n_critic_updates": 15,
    },
    "MountainCarContinuous-v0": {
        "source": f"{_ZOO} trpo.yml MountainCarContinuous-v0",
        "normalize": {},
        "n_envs": 2,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
    "InvertedDoublePendulum-v5": _TRPO_DEFAULTS | {"normalize": {}},
    "Hopper-v5": {"source": f"{_ZOO} trpo.yml Hopper-v4", **_TRPO_MUJOCO},
    "Walker2d-v5": {"source": f"{_ZOO} trpo.yml Walker2d-v4", **_TRPO_MUJOCO},
    "HalfCheetah-v5": {"source": f"{_ZOO} trpo.yml HalfCheetah-v4", **_TRPO_MUJOCO, "target_kl": 0.04},
    "Swimmer-v5": {"source": f"{_ZOO} trpo.yml Swimmer-v4", **_TRPO_MUJOCO, "gamma": 0.9999},
    "Ant-v5": {"source": f"{_ZOO} trpo.yml Ant-v4", **_TRPO_MUJOCO},
    "MiniGrid-DoorKey-6x6-flat-v0": _TRPO_DEFAULTS,
    "MiniGrid-MultiRoom-N2-S4-flat-v0": _TRPO_DEFAULTS,
    "MinAtar-Breakout-flat-v1": _TRPO_DEFAULTS,
}

# What a user who tunes nothing but knows the usual advice gives PPO: nothing else than its defaults.
_PPO_NORMALIZED: Settings = {
    "source": "SB3's defaults, a falling learning rate and VecNormalize",
    "normalize": {},
    "learning_rate": "lin_0.0003",
}
PPO_NORMALIZED: dict[str, Settings] = {
    **{env_name: _PPO_NORMALIZED for env_name in ENV_NAMES},
    # VecNormalize does not normalise observations that are numbers of states.
    "FrozenLake-v1": _PPO_NORMALIZED | {"normalize": {"norm_obs": False}},
}
# MultiRoom with shorter rollouts and more entropy than ours, which suit PPO better.
PPO_SHORT: dict[str, Settings] = {
    "MiniGrid-MultiRoom-N2-S4-flat-v0": {
        "source": "GRPO's settings for DoorKey",
        "n_envs": 8,
        "n_steps": 256,
        "batch_size": 256,
        "n_epochs": 4,
        "learning_rate": "lin_0.001",
        "ent_coef": 0.02,
    }
}

_ARS_MLP: dict[str, Any] = {
    "policy": "MlpPolicy",
    "normalize": {"norm_obs": True, "norm_reward": False},
    "learning_rate": 0.018,
    "n_delta": 4,
    "n_top": 1,
    "delta_std": 0.1,
    "policy_kwargs": {"net_arch": [16]},
    "zero_policy": False,
}
ARS_ZOO: dict[str, Settings] = {
    "CartPole-v1": {"source": f"{_ZOO} ars.yml CartPole-v1", "policy": "LinearPolicy", "n_delta": 2},
    "Acrobot-v1": {"source": f"{_ZOO} ars.yml Acrobot-v1", **_ARS_MLP},
    "Pendulum-v1": {"source": f"{_ZOO} ars.yml Pendulum-v1", **_ARS_MLP},
    "MountainCar-v0": {"source": f"{_ZOO} ars.yml MountainCar-v0", **_ARS_MLP, "n_delta": 8},
    "FrozenLake-v1": {"source": "sb3-contrib's defaults; the zoo has no entry", "policy": "LinearPolicy"},
    "LunarLander-v3": {"source": f"{_ZOO} ars.yml LunarLander-v3", **_ARS_MLP, "n_delta": 6},
    "Hopper-v5": {
        "source": f"{_ZOO} ars.yml Hopper-v4",
        "policy": "LinearPolicy",
        "learning_rate": 0.01,
        "delta_std": 0.025,
        "n_delta": 8,
        "n_top": 4,
        "alive_bonus_offset": -1,
        "normalize": {"norm_obs": True, "norm_reward": False},
    },
}


class Published(NamedTuple):
    """A score that others published, for orientation: of one training, and most often of another budget than here.

    :param algorithm: Name of the algorithm.
    :param env_name: Environment it was measured on, in an older version where the task has a newer one.
    :param score: Mean own reward of the deterministic policy.
    :param n_steps: Simulator steps of the training.
    """

    algorithm: str
    env_name: str
    score: float
    n_steps: int


#: benchmark.md of rl-baselines3-zoo: SAC where actions are continuous, DQN elsewhere; both learn from old steps again.
PUBLISHED = {
    "CartPole-v1": Published("DQN", "CartPole-v1", 500.0, 50_000),
    "Acrobot-v1": Published("DQN", "Acrobot-v1", -76.6, 100_000),
    "Pendulum-v1": Published("SAC", "Pendulum-v1", -157.0, 20_000),
    "MountainCar-v0": Published("DQN", "MountainCar-v0", -100.8, 120_000),
    "MountainCarContinuous-v0": Published("SAC", "MountainCarContinuous-v0", 94.7, 50_000),
    "LunarLander-v3": Published("DQN", "LunarLander-v2", 154.4, 100_000),
    "Hopper-v5": Published("SAC", "Hopper-v3", 2325.5, 1_000_000),
    "Walker2d-v5": Published("SAC", "Walker2d-v3", 3863.2, 1_000_000),
    "HalfCheetah-v5": Published("SAC", "HalfCheetah-v3", 9535.5, 1_000_000),
    "Swimmer-v5": Published("SAC", "Swimmer-v3", 345.6, 1_000_000),
    "Ant-v5": Published("SAC", "Ant-v3", 4615.8, 1_000_000),
}
