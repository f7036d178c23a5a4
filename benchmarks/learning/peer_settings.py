"""The settings of the methods that GRPO is compared with.

They are those of rl-baselines3-zoo 2.9.2 (rl_zoo3/hyperparams/ppo.yml, trpo.yml and ars.yml); ``source`` names the
entry. The task's budget replaces ``n_timesteps``, so that ``"lin_x"`` falls from x to 0 over the budget.
"""

from typing import Any

from benchmarks.lib.runs import Settings

_ZOO = "rl-baselines3-zoo 2.9.2"

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
    # FrozenLake-v1 has no entry; "ppo_default" is PPO there.
}

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
    "FrozenLake-v1": {"source": "sb3-contrib's defaults; the zoo has no entry"},
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
    "Hopper-v5": {
        "source": f"{_ZOO} trpo.yml Hopper-v4",
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
    },
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
