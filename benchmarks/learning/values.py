"""Compare the ``value`` of served policies with what really followed: ``python -m benchmarks.learning.values``.

Each task is trained over HTTP with its defaults. A value is compared with the discounted return of the reward trained
on, from every state of 30 deterministic episodes of seeds that nothing else plays; states count whose return the end of
an episode cut by less than 5 %. ``sd`` is the returns' own spread: where it is next to nothing, so is what could
correlate. The last columns are the values of a balanced pole and of one that falls.
"""

import argparse
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
from fastapi.testclient import TestClient

from api import create_app
from benchmarks.lib.http_jobs import wait_for
from grpo_core.options.rewards import REWARD_FUNCTIONS
from grpo_core.saving import model_file
from grpo_core.values.fit import check_values
from grpo_core.values.trajectories import TrajectoryPlayer
from service.settings import Settings

TASKS = {
    "CartPole, optimized_cartpole": {"reward_function_type": "optimized_cartpole"},
    "CartPole, simple_cartpole": {"reward_function_type": "simple_cartpole"},
    "CartPole, own reward": {"reward_function_type": "environment"},
    "Acrobot": {"env_name": "Acrobot-v1"},
    "Pendulum": {"env_name": "Pendulum-v1"},
    "MountainCar": {"env_name": "MountainCar-v0"},
}
FIRST_SEED = 2000
_N_EPISODES = 30
_FIRST_EPISODE_SEED = 20_000_000
_BALANCED, _FALLING = [0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.18, 1.5]


def measure(client: TestClient, models_dir: Path, task: str, seed: int) -> str:
    """Train, and return the table's row."""
    name = f"{task.replace(', ', '-').replace(' ', '-')}-{seed}"
    job = client.post("/train", json={**TASKS[task], "seed": seed, "model_name": name}).json()
    config = wait_for(client, job["job_id"])["config"]
    content = model_file.from_bytes((models_dir / f"{name}.zip").read_bytes())
    actor = content.make_actor()
    player = TrajectoryPlayer(gym.make(config["env_name"]), actor, REWARD_FUNCTIONS.get(config["reward_function_type"]))
    episodes = [player.play_episode(_FIRST_EPISODE_SEED + i) for i in range(_N_EPISODES)]
    # Where rewards were normalised, the network's values are in units of this; those of POST /inference are not.
    scale = (content.meta.get("value_check") or {}).get("reward_scale", 1.0)
    check = check_values(actor, episodes, config["gamma"], scale)
    figures = (
        ["", "", "", ""] if check is None else _format(check.n_states, check.correlation, check.error, check.spread)
    )
    shown = []
    if config["env_name"] == "CartPole-v1":
        answers = [
            client.post("/inference", json={"model_name": name, "observation": observation}).json()["value"]
            for observation in (_BALANCED, _FALLING)
        ]
        shown = ["null" if value is None else f"{value:.1f}" for value in answers]
    is_shown = client.get(f"/models/{name}").json()["value_check"]
    shown_or_null = "shown" if is_shown is not None and is_shown["is_meaningful"] else "null"
    return " | ".join([f"{task:30}", f"{seed}", *figures, shown_or_null, *shown])


def _format(n_states: int, *figures: float | None) -> list[str]:
    return [f"{n_states:6}", *("  none" if figure is None else f"{figure:6.3f}" for figure in figures)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    arguments = parser.parse_args()
    print("task | seed | states | correlation | error / return | sd / return | value | balanced | falling")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(models_dir=Path(folder))
        with TestClient(create_app(settings), base_url="http://localhost") as client:
            for task in TASKS:
                for seed in range(arguments.first_seed, arguments.first_seed + arguments.n_seeds):
                    print(measure(client, Path(folder), task, seed), flush=True)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
