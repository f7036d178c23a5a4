"""Try one environment: ``python -m benchmarks.environments.trial SPEC``, and print each outcome as a line of JSON.

``SPEC`` is JSON with the fields of ``Spec``. Each stage prints what it found before the next begins, so that a time
limit loses only the rest.
"""

import argparse
import importlib
import json
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

_N_TIMED = 30
_TIMED_SECONDS = 2.0
_N_PROOF_STEPS = 64
_N_TRAINING_STEPS = 256
_POLL_SECONDS = 0.1
_MAX_SHOWN = 300
# Below it the convolutions have nothing to look at.
_MIN_IMAGE_SIDE = 36


@dataclass(frozen=True)
class Spec:
    """An environment to try.

    :param id: Its Gymnasium id.
    :param imports: Modules that register it.
    :param kwargs: Arguments of ``gym.make``.
    :param wrapper: A wrapper around it, as ``module:Class``.
    """

    id: str
    imports: list[str] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    wrapper: str | None = None


def make(spec: Spec) -> gym.Env[Any, Any]:
    """Make the environment."""
    for name in spec.imports:
        importlib.import_module(name)
    env: gym.Env[Any, Any] = gym.make(spec.id, **spec.kwargs)
    if spec.wrapper is not None:
        module, _, name = spec.wrapper.partition(":")
        env = getattr(importlib.import_module(module), name)(env)
    return env


def try_make(spec: Spec) -> dict[str, Any]:
    """Make, reset and step it."""
    start = time.perf_counter()
    env = make(spec)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    env.close()
    return {"construct": "yes", "construct_seconds": time.perf_counter() - start}


def try_restore(spec: Spec) -> dict[str, Any]:
    """Replay steps from captured states, and time captures, restores and steps."""
    from grpo_core.restoring.simulator import Simulator, check_branchable

    env = make(spec)
    check_branchable(env, _N_PROOF_STEPS)
    env.reset(seed=0)
    simulator = Simulator(env)
    state = simulator.capture()
    return {
        "truth": "exact",
        "capture_us": measure_us(simulator.capture),
        "restore_us": measure_us(lambda: simulator.restore(state)),
    }


def try_step(spec: Spec) -> dict[str, Any]:
    """Time steps, episodes' ends included."""
    env = make(spec)
    env.reset(seed=0)

    def step() -> None:
        if any(env.step(env.action_space.sample())[2:4]):
            env.reset()

    return {"step_us": measure_us(step)}


def try_train(spec: Spec) -> dict[str, Any]:
    """Build GRPO with its defaults, train it for one rollout, save and load it."""
    from grpo import GRPO

    env = make(spec)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = GRPO(choose_policy(env.observation_space), env, n_steps=_N_TRAINING_STEPS, seed=0)
    _print({"mode": model._mode, "warnings": [_shorten(str(warning.message)) for warning in caught]})
    start = time.perf_counter()
    model.learn(_N_TRAINING_STEPS)
    seconds = time.perf_counter() - start
    _print({"train": "yes", "train_steps": model.num_timesteps, "train_seconds": seconds})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy"
        model.save(path)
        loaded = GRPO.load(path)
    observation = model.observation_space.sample()
    before, after = (policy.predict(observation, deterministic=True)[0] for policy in (model, loaded))
    return {"save": "yes" if np.array_equal(before, after) else "another action"}


def try_http(spec: Spec) -> dict[str, Any]:
    """Train it by POST /train, as far as the id alone says what to train, and ask for an action."""
    from fastapi.testclient import TestClient

    from api import create_app
    from service.settings import Settings

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(models_dir=Path(folder), env_modules=tuple(spec.imports), executor="thread")
        with TestClient(create_app(settings), base_url="http://localhost") as client:
            request = {"env_name": spec.id, "total_timesteps": _N_TRAINING_STEPS, "model_name": "tried"}
            answer = client.post("/train", json=request)
            if answer.status_code != 200:
                return {"http": _shorten(str(answer.json()["detail"]))}
            status_url = f"/training/{answer.json()['job_id']}/status"
            while (status := client.get(status_url).json())["status"] in ("queued", "running"):
                time.sleep(_POLL_SECONDS)
            if status["status"] != "completed":
                return {"http": _shorten(str(status["error_message"]))}
            observation = to_json(make(spec).reset(seed=0)[0])
            answer = client.post("/inference", json={"model_name": "tried", "observation": observation})
            return {"http": "yes" if answer.status_code == 200 else _shorten(str(answer.json()["detail"]))}


def choose_policy(space: gym.Space[Any]) -> str:
    """Return the policy for an observation space, as a reader of SB3's pages would choose it."""
    if isinstance(space, gym.spaces.Dict):
        return "MultiInputPolicy"
    sides = sorted(space.shape or ())
    is_image = space.dtype == np.uint8 and len(sides) == 3 and sides[1] >= _MIN_IMAGE_SIDE
    return "CnnPolicy" if is_image else "MlpPolicy"


def measure_us(do: Callable[[], object]) -> float:
    """Return the median time of a call, in µs; the first call is not counted."""
    do()
    end = time.perf_counter() + _TIMED_SECONDS
    times: list[float] = []
    while len(times) < _N_TIMED and (not times or time.perf_counter() < end):
        start = time.perf_counter()
        do()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def to_json(observation: Any) -> Any:
    """Return an observation as JSON has it."""
    if isinstance(observation, dict):
        return {key: to_json(value) for key, value in observation.items()}
    return np.asarray(observation).tolist()


def hide_paths(text: str) -> str:
    """Leave the folders of this machine, and addresses in its memory, out of a message."""
    return re.sub(r"(?<![\w/])/(?:[\w.+-]+/)+| at 0x[0-9a-f]+", "", text)


STAGES = {
    "construct": try_make,
    "step": try_step,
    "truth": try_restore,
    "train": try_train,
    "http": try_http,
}


def _shorten(text: str) -> str:
    text = hide_paths(" ".join(text.split()))
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def _print(outcome: dict[str, Any]) -> None:
    print(json.dumps(outcome), flush=True)


def main() -> None:
    """Try the environment, stage by stage; one that cannot be made is tried no further."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", metavar="SPEC")
    spec = Spec(**json.loads(parser.parse_args().spec))
    warnings.simplefilter("ignore")
    for stage, do in STAGES.items():
        try:
            _print(do(spec))
        except Exception as error:  # foreign code may raise anything
            _print({stage: _shorten(f"{type(error).__name__}: {error}")})
            if stage == "construct":
                return


if __name__ == "__main__":
    main()
