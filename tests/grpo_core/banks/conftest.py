"""Workers that end with the test."""

from collections.abc import Callable, Iterator

import pytest
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from tests.grpo_core.banks.support import Env, MakeWorkers


@pytest.fixture
def make_workers() -> Iterator[MakeWorkers]:
    """Start one worker per given function; all end with the test, even if some have died."""
    started: list[SubprocVecEnv] = []

    def make(*env_fns: Callable[[], Env]) -> VecEnv:
        started.append(SubprocVecEnv(list(env_fns), start_method="fork"))
        return started[-1]

    yield make
    for env in started:
        for remote, process in zip(env.remotes, env.processes, strict=True):
            if process.is_alive():
                remote.send(("close", None))
            process.join()
            remote.close()
