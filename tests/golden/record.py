"""Record what must stay the same while code moves: ``python -m tests.golden.record``.

Run it where a change is meant to be seen, and say in the commit what changed and why. ``tests/test_golden.py``
compares.
"""

import argparse
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import gymnasium as gym
import numpy as np
import torch
from fastapi.testclient import TestClient
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from api import create_app
from grpo import GRPO
from grpo_core.options.choices import GroupMode

FOLDER = Path(__file__).parent
MODELS = FOLDER / "models"
N_OBSERVATIONS = 5


class Answers(TypedDict):
    """One action and one value per observation."""

    actions: list[Any]
    values: list[float]


class Counter(gym.Env[Any, Any]):
    """Counts its steps and shows the count in any space; nothing in it depends on the machine."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self._count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = int(self.np_random.integers(5))
        return self._show(self.observation_space), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._count += 1
        reward = 0.1 * (-1) ** self._count * float(np.sum(action))
        return self._show(self.observation_space), reward, self._count >= 23, False, {}

    def capture_state(self) -> int:
        return self._count

    def restore_state(self, state: int) -> None:
        self._count = state

    def _show(self, space: spaces.Space[Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return {key: self._show(part) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Discrete):
            return self._count % int(space.n)
        return np.full(space.shape or (), self._count % 7, space.dtype)


NUMBERS = spaces.Box(-8, 8, (3,), np.float32)
DICT = spaces.Dict({"numbers": NUMBERS, "kind": spaces.Discrete(4)})
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
TWO_OF_THREE = spaces.MultiDiscrete([3, 2])
PLANE = spaces.Box(-1, 1, (2,), np.float32)
# Policy, spaces, group mode; every space and mode at least once.
CASES: dict[str, tuple[str, spaces.Space[Any], spaces.Space[Any], GroupMode]] = {
    "branch-box-discrete": ("MlpPolicy", NUMBERS, spaces.Discrete(3), "branch"),
    "branch-discrete-multidiscrete": ("MlpPolicy", spaces.Discrete(4), TWO_OF_THREE, "branch"),
    "episode-dict-multibinary": ("MultiInputPolicy", DICT, spaces.MultiBinary(2), "episode"),
    "episode-box-box": ("MlpPolicy", NUMBERS, PLANE, "episode"),
    "action-dict-discrete": ("MultiInputPolicy", DICT, spaces.Discrete(3), "action"),
    "branch-image-discrete": ("CnnPolicy", IMAGE, spaces.Discrete(3), "branch"),
}


# Convolutions take most of a megabyte.
RECORDED_MODELS = [case for case in CASES if "image" not in case]


def train(case: str) -> GRPO:
    """Train the model of a case for 96 simulator steps."""
    policy, observation_space, action_space, mode = CASES[case]
    env: VecEnv = DummyVecEnv([lambda: Counter(observation_space, action_space)] * 2)
    if observation_space is NUMBERS:
        env = VecNormalize(env)
    arguments: dict[str, Any] = {"group_size": 3, "horizon": 4, "n_steps": 24}
    if mode == "episode":
        arguments = {"n_steps": 48}
    arguments |= {"policy_kwargs": {"net_arch": [4]}, "batch_size": 16, "n_epochs": 2}
    return GRPO(policy, env, seed=5, device="cpu", group_mode=mode, **arguments).learn(96)


def measure_weights(model: GRPO) -> dict[str, float]:
    """Return the Euclidean norm of every parameter."""
    return {name: float(parameter.norm()) for name, parameter in model.policy.state_dict().items()}


def draw_observations(space: spaces.Space[Any]) -> Iterator[Any]:
    """Draw the observations that answers are recorded for."""
    space.seed(0)
    return (space.sample() for _ in range(N_OBSERVATIONS))


def ask(model: GRPO) -> Answers:
    """Ask a model for actions and values, as its NumPy actor gives them."""
    actor, answers = model.make_actor(), Answers(actions=[], values=[])
    for observation in draw_observations(model.observation_space):
        parts = observation if isinstance(observation, dict) else {"": observation}
        batch = {key: np.asarray(part)[None] for key, part in parts.items()}
        decision = actor.act(batch if isinstance(observation, dict) else batch[""], True, np.random.default_rng(0))
        answers["actions"].append(np.asarray(decision.actions)[0].tolist())
        answers["values"].append(float(decision.values[0]))
    return answers


def list_arguments() -> list[list[str]]:
    """List the constructor's arguments with their defaults, in order."""
    return [[name, repr(parameter.default)] for name, parameter in inspect.signature(GRPO).parameters.items()]


def get_openapi() -> dict[str, Any]:
    """Return the published schema."""
    with TestClient(create_app(), base_url="http://localhost") as client:
        schema: dict[str, Any] = client.get("/openapi.json").json()
    return schema


def write(name: str, content: Any) -> None:
    """Write a golden file of JSON."""
    (FOLDER / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Record everything."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    MODELS.mkdir(exist_ok=True)
    weights, answers = {}, {}
    for case in CASES:
        model = train(case)
        weights[case] = measure_weights(model)
        if case in RECORDED_MODELS:
            file = MODELS / f"{case}.zip"
            if not file.exists():  # files of the past have to load as they were written
                file.write_bytes(model.to_bytes(env_name="Counter-v0"))
            answers[case] = ask(GRPO.load(file, device="cpu"))
    write("weights.json", weights)
    write("answers.json", answers)
    write("arguments.json", list_arguments())
    write("openapi.json", get_openapi())


if __name__ == "__main__":
    main()
