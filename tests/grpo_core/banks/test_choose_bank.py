"""Which vectorised environments and wrappers a bank is made of, and why others are refused."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from grpo_core.banks.choose_bank import find_obstacle, make_bank
from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.banks.single_env import Order
from grpo_core.restoring.errors import NotBranchableError
from tests.grpo_core.banks.support import Camera, MakeWorkers, make_cart_pole, see, simplify

# Forking starts a worker fast, and this process holds no lock that a worker needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_box2d_can_be_reset_and_stepped_where_it_cannot_be_restored() -> None:
    pytest.importorskip("Box2D")
    env = make_vec_env("LunarLander-v3", n_envs=2)
    obstacle = find_obstacle(env)
    assert obstacle is not None
    assert 'group_mode="episode"' in obstacle
    with pytest.raises(NotBranchableError, match="LunarLander cannot be restored"):
        make_bank(env, needs_restore=True)
    bank = make_bank(env, needs_restore=False)
    first = bank.reset({0: 3, 1: 3})
    assert simplify(first[0][0].observation) == simplify(first[1][0].observation)
    outcomes = bank.step({0: Order(2), 1: Order(2)})
    assert see(outcomes[0]) == see(outcomes[1])


def test_there_is_no_obstacle_where_groups_can_branch(make_workers: MakeWorkers) -> None:
    assert find_obstacle(make_vec_env("CartPole-v1")) is None
    assert find_obstacle(VecNormalize(VecFrameStack(DummyVecEnv([Camera]), 2), norm_obs=False)) is None
    assert find_obstacle(make_workers(lambda: RestorableWrapper(make_cart_pole()))) is None


def normalize_images(env: VecEnv) -> VecNormalize:
    """Normalise images: a new VecNormalize returns them as numbers, which SB3 does not transpose."""
    normalized = VecNormalize(env, norm_obs_keys=["places"])
    normalized.norm_obs_keys = ["places", "image"]
    return normalized


class Shifted(VecNormalize):
    """Normalises in its own way."""

    def normalize_obs(self, obs: Any) -> Any:
        return obs


class Counting(VecMonitor):
    """Counts steps that groups do not take."""

    def step_wait(self) -> Any:
        self.n_steps = getattr(self, "n_steps", 0) + 1
        return super().step_wait()


class TenfoldEnvs(DummyVecEnv):
    """Pays ten times what its environments do."""

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        return observations, 10 * rewards, dones, infos


class Named(VecNormalize):
    """Has a name, and a way of its own to do what groups leave to it."""

    def __init__(self, env: VecEnv, name: str) -> None:
        super().__init__(env, norm_obs_keys=["places"])
        self.name = name

    def normalize_reward(self, reward: Any) -> Any:
        return super().normalize_reward(reward)


REFUSED: dict[str, tuple[Callable[[VecEnv], VecEnv], str]] = {
    "unknown wrapper": (
        lambda env: VecExtractDictObs(env, "image"),
        r"bypasses VecExtract.*wrapper_class=\.\.\.",
    ),
    "own normalization": (
        lambda env: Shifted(env, norm_obs_keys=["places"]),
        r"bypasses Shifted\.normalize_obs\. .*wrapper_class",
    ),
    "own monitor": (Counting, r"bypasses Counting\.step_wait\."),
    "normalized twice": (lambda env: VecNormalize(VecNormalize(env)), "two VecNormalize"),
    "normalized, then stacked": (
        lambda env: VecFrameStack(VecNormalize(env, norm_obs_keys=["places"]), 2),
        r"VecNormalize\(VecFrameStack\(env, n_stack\)\)",
    ),
    "normalized images": (
        lambda env: VecTransposeImage(normalize_images(env)),
        "norm_obs_keys without the images",
    ),
}


@pytest.mark.parametrize(("wrap", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_wrappers_that_cannot_be_bypassed_are_refused_with_the_remedy(
    wrap: Callable[[VecEnv], VecEnv], remedy: str
) -> None:
    env = wrap(DummyVecEnv([lambda: Camera(with_dict=True)]))
    for needs_restore in (False, True):
        with pytest.raises(ValueError, match=remedy):
            make_bank(env, needs_restore=needs_restore)


def test_subclasses_that_replace_nothing_that_is_bypassed_are_accepted() -> None:
    env = Named(DummyVecEnv([lambda: Camera(with_dict=True)]), "mine")
    assert make_bank(env, needs_restore=False).reset({0: 0})
    env.normalize_obs = lambda obs: obs  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"bypasses Named\.normalize_obs\."):
        make_bank(env, needs_restore=False)


def test_a_method_of_the_innermost_that_would_be_bypassed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bypasses TenfoldEnvs\.step_wait\. .*wrapper_class"):
        make_bank(TenfoldEnvs([make_cart_pole]), needs_restore=True)
    env = DummyVecEnv([make_cart_pole])
    for copied in (False, True):  # a bank notices who calls some of the methods
        assert make_bank(deepcopy(env) if copied else env, needs_restore=True).reset({0: 0})
    env.step_async = lambda actions: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"bypasses DummyVecEnv\.step_async\."):
        make_bank(env, needs_restore=False)


def test_normalising_an_image_observation_is_refused() -> None:
    normalized = VecNormalize(DummyVecEnv([Camera]), norm_obs=False)
    normalized.norm_obs = True
    with pytest.raises(ValueError, match="norm_obs=False to VecNormalize"):
        make_bank(VecTransposeImage(normalized), needs_restore=False)


def test_numbers_may_be_normalised_inside_the_transposition() -> None:
    env = VecTransposeImage(VecNormalize(DummyVecEnv([lambda: Camera(with_dict=True)]), norm_obs_keys=["places"]))
    observed, _ = make_bank(env, needs_restore=True).reset({0: 0})[0]
    assert observed.observation["image"].shape == (1, 40, 36)
    assert observed.observation["places"][0] >= 10, "observations are not normalised here"


class UnknownVecEnv(VecEnv):
    """Steps its environments in a way of its own."""

    def __init__(self) -> None:
        super().__init__(1, spaces.Discrete(2), spaces.Discrete(2))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None]

    def reset(self) -> Any: ...
    def step_async(self, actions: Any) -> None: ...
    def step_wait(self) -> Any: ...
    def close(self) -> None: ...
    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None: ...
    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return []


def test_other_vectorised_environments_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"not of a UnknownVecEnv; build one of these with make_vec_env"):
        make_bank(UnknownVecEnv(), needs_restore=False)


@pytest.mark.parametrize("needs_restore", [True, False])
@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_a_monitor_that_refuses_resets_is_refused(kind: Any, needs_restore: bool) -> None:
    env = kind([lambda: RestorableWrapper(Monitor(make_cart_pole(), allow_early_resets=False))])
    try:
        with pytest.raises(ValueError, match=r"allow_early_resets=False\) refuses .* take Monitor\(env\)"):
            make_bank(env, needs_restore=needs_restore)
    finally:
        env.close()
