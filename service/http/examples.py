"""The examples in the published schema. Sent in order, they work: train, then ask and evaluate the model."""

from typing import Any

from fastapi.openapi.models import Example

# No name that README gives, so that trying the first example out replaces no model of a reader.
MODEL_NAME = "first-try"

JOB_ID: dict[str, Example] = {"latest": {"summary": "The most recently submitted job", "value": "latest"}}
MODEL: dict[str, Example] = {
    MODEL_NAME: {"summary": "The model trained by the first example of POST /train", "value": MODEL_NAME}
}
ALIAS: dict[str, Example] = {"prod": {"summary": "The version in use", "value": "prod"}}
PROMOTE: dict[str, Example] = {
    "newest": {"summary": "The newest version", "value": {}},
    "first": {"summary": "The first version", "value": {"version": 1}},
}
ROLL_BACK: dict[str, Example] = {
    "before": {"summary": "The version before the newest", "value": {}},
    "first": {"summary": "The first version", "value": {"version": 1}},
}
ENVIRONMENT: dict[str, Example] = {"CartPole-v1": {"summary": "A pole on a cart", "value": "CartPole-v1"}}
TRAIN: dict[str, Example] = {
    "cartpole": {
        "summary": "Balance a pole in a few seconds",
        "value": {"env_name": "CartPole-v1", "total_timesteps": 10_000, "model_name": MODEL_NAME},
    },
    "preset": {
        "summary": "Swing up a pendulum with the preset's settings",
        "value": {"env_name": "Pendulum-v1", "total_timesteps": 30_000, "model_name": "swing"},
    },
    "rewards": {
        "summary": "Combine two weighted reward functions",
        "value": {
            "env_name": "CartPole-v1",
            "reward_functions": {"environment": 1.0, "simple_cartpole": 0.5},
            "total_timesteps": 10_000,
            "model_name": "two-rewards",
            "seed": 0,
        },
    },
}
SWEEP_ID: dict[str, Example] = {"latest": {"summary": "The most recently submitted sweep", "value": "latest"}}
SWEEP: dict[str, Example] = {
    "grid": {
        "summary": "Two learning rates, each with two seeds",
        "value": {
            "base": {"env_name": "CartPole-v1", "total_timesteps": 2_000},
            "space": {"learning_rate": [0.0003, 0.001]},
            "seeds": [0, 1],
        },
    },
    "halving": {
        "summary": "Nine drawn settings, of which three and then one get more steps",
        "value": {
            "base": {"env_name": "CartPole-v1", "total_timesteps": 9_000},
            "space": {
                "learning_rate": {"distribution": "loguniform", "low": 0.0001, "high": 0.01},
                "group_size": [2, 4, 8],
            },
            "method": "halving",
            "n_trials": 9,
            "seed": 0,
        },
    },
}
_OBSERVATION = [0.1, 0.0, 0.05, 0.0]
INFERENCE: dict[str, Example] = {
    "cartpole": {
        "summary": "CartPole's position, velocity, angle and angular velocity",
        "value": {"model_name": MODEL_NAME, "observation": _OBSERVATION},
    },
    "sampled": {
        "summary": "Sample the action, and allow only one of the two",
        "value": {
            "model_name": MODEL_NAME,
            "observation": _OBSERVATION,
            "deterministic": False,
            "action_masks": [False, True],
        },
    },
}
BATCH: dict[str, Any] = {"model_name": MODEL_NAME, "observations": [_OBSERVATION, [0.0, 0.5, -0.1, -0.5]]}
EVALUATE: dict[str, Example] = {
    "twenty": {"summary": "Twenty episodes", "value": {"n_episodes": 20, "seed": 0}},
    "sampled": {"summary": "Ten episodes with sampled actions", "value": {"n_episodes": 10, "deterministic": False}},
}
METRICS = """# HELP grpo_jobs Jobs the server remembers, by status.
# TYPE grpo_jobs gauge
grpo_jobs{status="queued"} 0.0
grpo_jobs{status="running"} 1.0
"""
