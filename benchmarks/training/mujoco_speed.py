"""Measure MuJoCo tasks: GRPO beside SB3's PPO with 8 environments, and SBX's if installed, on one core and two.

``python -m benchmarks.training.mujoco_speed`` prints Markdown tables in some minutes. Ways that are compared take
turns: trust the ratios more than the rates. Plain "GRPO" plays groups of four branches of 64 steps, 32 at once; the
presets play fewer and longer ones. ``mj_step alone`` is the floor, the same physics without anything around
it; a rate divided by the floor's is the share of the time that is physics.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import mujoco
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.learning.grpo_settings import get_grpo_settings, make_grpo
from benchmarks.lib.timing import Case, Comparison, format_comparison, take_turns
from benchmarks.training.rollout_timer import RolloutTimer
from grpo import GRPO

_ENV_IDS = ("Hopper-v5", "HalfCheetah-v5", "Ant-v5")
_N_ENVS, _ROLLOUT_STEPS = 8, 2048
_PPO, _SBX, _FLOOR = "SB3 PPO, 8 environments", "SBX PPO, 8 environments", "mj_step alone"


def _make_floor(env_id: str, n_steps: int) -> Case:
    """Step random actions, and time nothing but the physics."""
    env: Any = gym.make(env_id)
    core = env.unwrapped

    def run() -> float:
        seconds, is_over = 0.0, True
        for _ in range(n_steps):
            if is_over:
                env.reset(seed=0)
            physics, action = core.data, env.action_space.sample()
            physics.ctrl[:] = action
            began = time.perf_counter()
            mujoco.mj_step(core.model, physics, core.frame_skip)
            seconds += time.perf_counter() - began
            is_over = abs(core.data.qpos[:3]).max() > 1.5 or core.data.time > 1.0
        return n_steps / seconds

    return run


def _make_case(model: Any, n_steps: int, is_whole: bool, n_cores: int) -> Case:
    cores = sorted(os.sched_getaffinity(0))

    def run() -> float:
        os.sched_setaffinity(0, cores[:n_cores])
        try:
            timer, n_before, began = RolloutTimer(), model.num_timesteps, time.perf_counter()
            model.learn(n_steps, callback=timer, reset_num_timesteps=False)
            seconds = time.perf_counter() - began if is_whole else timer.seconds
            return float((model.num_timesteps - n_before) / seconds)
        finally:
            os.sched_setaffinity(0, cores)

    return run


def _compare(env_id: str, n_repetitions: int, n_steps: int, is_whole: bool) -> Comparison:
    # Where only collecting is timed, policies stay untrained, so that episodes stay as long as they are.
    changed: dict[str, Any] = {} if is_whole else {"learning_rate": 1e-9, "n_epochs": 1}
    learning: dict[str, Any] = {"seed": 0, "device": "cpu"} | changed

    def make_env() -> Any:
        return make_vec_env(env_id, _N_ENVS, seed=0)

    peers: dict[str, Any] = {_PPO: PPO("MlpPolicy", make_env(), n_steps=_ROLLOUT_STEPS // _N_ENVS, **learning)}
    if is_whole and importlib.util.find_spec("sbx") is None:
        sys.stderr.write("SBX's PPO is left out: pip install sbx-rl==0.28.0\n")
    elif is_whole:
        sbx = importlib.import_module("sbx")
        peers[_SBX] = sbx.PPO("MlpPolicy", make_env(), n_steps=_ROLLOUT_STEPS // _N_ENVS, batch_size=64, seed=0)
    cases = {label: _make_case(model, n_steps, is_whole, 1) for label, model in peers.items()}
    for n_cores in range(1, 1 + min(2, len(os.sched_getaffinity(0)))):
        model = GRPO("MlpPolicy", env_id, n_steps=_ROLLOUT_STEPS, group_size=4, horizon=64, **learning)
        model.n_simulator_threads = n_cores
        cases[f"GRPO, {n_cores} core{'s' * (n_cores > 1)}"] = _make_case(model, n_steps, is_whole, n_cores)
    model = make_grpo(env_id, (get_grpo_settings(env_id) or {}) | changed, seed=0)
    model.n_simulator_threads = 1
    cases["GRPO, its preset, 1 core"] = _make_case(model, n_steps, is_whole, 1)
    if not is_whole:
        cases[_FLOOR] = _make_floor(env_id, n_steps)
    references = [*peers, "GRPO, 1 core", *([] if is_whole else [_FLOOR])]
    title = f"{env_id}: steps per second, {'collecting and learning' if is_whole else 'collecting'}"
    return Comparison(title, take_turns(cases, n_repetitions), references, is_rate=True, n_decimals=0)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-repetitions", type=int, default=5)
    parser.add_argument("--n-timesteps", type=int, default=4096, help="per measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for env_id in _ENV_IDS:
        for is_whole in (False, True):
            comparison = _compare(env_id, arguments.n_repetitions, arguments.n_timesteps, is_whole)
            print(format_comparison(comparison) + "\n", flush=True)


if __name__ == "__main__":
    main()
