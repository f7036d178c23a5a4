"""Jobs that would fill the memory are refused before they start."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from grpo import GRPO
from service.errors import InvalidRequestError
from service.schemas.training import TrainConfig
from tests.conftest import RegisterEnv
from tests.environments import LineEnv, SpaceEnv
from tests.support import make_plan

SCREEN = spaces.Box(0, 255, (84, 84, 4), np.uint8)


def resolve(**request: Any) -> TrainConfig:
    return make_plan(**request).config


def refuse(**request: Any) -> str:
    with pytest.raises(InvalidRequestError) as refusal:
        resolve(**request)
    return refusal.value.detail


def test_a_long_rollout_of_many_environments_is_refused(register_env: RegisterEnv) -> None:
    # 64 * 16384 steps of 4 * 1000 observed numbers of 4 bytes, 2 logits of 8 and 64 bytes more are 16080 MiB; 65536
    # branches of 16 steps take 1 KiB and an observation each on top, 314 MiB.
    env_name = register_env(lambda: LineEnv(observation_size=1000))
    detail = refuse(env_name=env_name, n_envs=64, n_steps=16_384, horizon=16)
    assert "16394 MiB per rollout, more than the limit of 256" in detail


def test_a_long_rollout_of_short_branches_is_refused() -> None:
    assert "in branches of 1 take" in refuse(n_envs=64, n_steps=16_384, horizon=1)
    assert resolve(n_envs=64, n_steps=16_384).horizon == 16


def test_a_pixel_takes_one_byte(register_env: RegisterEnv) -> None:
    env_name = register_env(lambda: SpaceEnv(SCREEN, spaces.Discrete(4)))
    assert resolve(env_name=env_name, n_steps=2048).n_steps == 2048
    # 4096 steps of 4 * 28224 pixels are 441 MiB.
    assert " MiB per rollout, more than the limit of 256" in refuse(env_name=env_name, n_steps=4096)


def test_an_archive_of_anchor_states_takes_what_it_may_grow_to(register_env: RegisterEnv) -> None:
    # 2048 steps of 4 * 28224 pixels are 220 MiB, and an archive is 64 MiB at most.
    env_name = register_env(lambda: SpaceEnv(SCREEN, spaces.Discrete(4)))
    detail = refuse(env_name=env_name, n_steps=2048, anchor_selection="archive")
    assert "take 286 MiB per rollout, more than the limit of 256 MiB" in detail
    assert resolve(env_name=env_name, n_steps=1024, anchor_selection="archive").anchor_selection == "archive"


def test_a_filled_rollout_takes_what_its_padding_takes() -> None:
    # 64 * 8192 steps of 4 * 4 observed numbers of 4 bytes, 2 logits of 8 and 64 bytes more are 72 MiB, and seven times
    # 2 * 16 + 64 bytes of padding 336 MiB; 8 * 16384 branches of 1 KiB and an observation are 130 MiB.
    shape: dict[str, Any] = {"n_envs": 64, "horizon": 32, "n_steps": 2048}
    assert resolve(**shape, fill_rollouts=True).fill_rollouts
    assert resolve(**shape | {"n_steps": 8192}).n_steps == 8192
    assert "take 538 MiB per rollout, more than" in refuse(**shape | {"n_steps": 8192}, fill_rollouts=True)


def test_rollout_workers_count() -> None:
    shape: dict[str, Any] = {"n_steps": 4096, "horizon": 32, "n_rollout_shards": 64}
    resolve(**shape, n_rollout_workers=40)
    # Each takes 40 MiB, beside the 200 MiB that they share.
    assert "n_rollout_workers=64 take 27" in refuse(**shape, n_rollout_workers=64)


def test_a_dict_takes_as_much_as_its_parts(register_env: RegisterEnv) -> None:
    space = spaces.Dict({"left": SCREEN, "right": SCREEN})
    env_name = register_env(lambda: SpaceEnv(space, spaces.Discrete(4)))
    assert resolve(env_name=env_name, n_steps=1024).n_steps == 1024
    assert " MiB per rollout, more than the limit of 256" in refuse(env_name=env_name, n_steps=2048)


def test_long_episodes_take_memory_for_all_of_their_steps(register_env: RegisterEnv) -> None:
    # Two episodes of 10000 screens take 2 * 10000 * 4 * 28224 bytes, 2.1 GiB, however small n_steps is.
    env_name = register_env(lambda: SpaceEnv(SCREEN, spaces.Discrete(4)), max_episode_steps=10_000)
    detail = refuse(env_name=env_name, group_mode="episode")
    assert (
        " MiB per rollout, more than the limit of 256 MiB; lower n_envs, n_steps or group_size, or send horizon"
        in detail
    )
    assert resolve(env_name=env_name, group_mode="episode", horizon=100).horizon == 100
    assert resolve(env_name=env_name).group_mode == "branch"


def test_a_horizon_limits_the_memory_of_episodes(register_env: RegisterEnv) -> None:
    # Three groups of two episodes of 50 screens are 300 * 4 * 28224 bytes, 32 MiB.
    env_name = register_env(lambda: SpaceEnv(SCREEN, spaces.Discrete(4)), max_episode_steps=1000)
    assert resolve(env_name=env_name, group_mode="episode", horizon=50, n_steps=256).n_steps == 256
    assert " MiB per rollout" in refuse(env_name=env_name, group_mode="episode", horizon=50, n_steps=4096)


def test_a_minibatch_that_would_fill_the_memory_is_refused() -> None:
    # 65536 steps through two networks of 4096 units, forward and backward, 4 bytes each, take 4096 MiB, and 8 inputs 2.
    request = {"n_envs": 4, "n_steps": 16_384, "batch_size": 65_536}
    assert "4098 MiB per minibatch, more than the limit of 256" in refuse(**request, net_arch=[1024, 1024, 1024, 1024])
    assert resolve(**request).batch_size == 65_536


def test_convolutions_count_in_a_minibatch(register_env: RegisterEnv) -> None:
    env_name = register_env(lambda: SpaceEnv(SCREEN, spaces.Discrete(4)))
    assert resolve(env_name=env_name, n_steps=1024, batch_size=256).batch_size == 256
    assert " MiB per minibatch, more than the limit of 256" in refuse(env_name=env_name, n_steps=1024, batch_size=1024)


def test_undivided_branches_count_in_a_minibatch(register_env: RegisterEnv) -> None:
    env_name = register_env(LineEnv)
    request: dict[str, Any] = {"env_name": env_name, "n_steps": 16_384, "horizon": 8192, "net_arch": [1024] * 4}
    assert resolve(**request).batch_size == 64
    assert " MiB per minibatch, more than the limit of 256" in refuse(**request, importance_level="branch")


def test_a_model_too_large_for_its_file_is_refused(register_env: RegisterEnv) -> None:
    # Two first layers of 20000 * 1024 weights, with Adam's moments, are 470 MiB.
    env_name = register_env(lambda: LineEnv(observation_size=20_000))
    assert "MiB, more than the limit of 126 MiB; use smaller layers" in refuse(env_name=env_name, net_arch=[1024])
    assert resolve(env_name=env_name).net_arch == [64, 64]


def test_bounds_that_would_fill_a_models_metadata_are_refused(register_env: RegisterEnv) -> None:
    # Half of a model file's metadata are 512 KiB; 20000 numbers with bounds of their own take 2 * 20000 * 25 bytes.
    low = np.linspace(-2.0, -1.0, 20_000, dtype=np.float32)
    env_name = register_env(lambda: SpaceEnv(spaces.Box(low, -low), spaces.Discrete(2)))
    detail = refuse(env_name=env_name, n_steps=64)
    assert "KiB in a model file, more than the limit of 512 KiB; give their Boxes fewer or equal bounds" in detail


def test_a_model_of_too_many_arrays_is_refused(register_env: RegisterEnv) -> None:
    # 30 images with 8 arrays each, 12 of two layers and outputs, and three times that by Adam, are 1008 arrays.
    small = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    space = spaces.Dict({f"camera_{i}": small for i in range(30)})
    env_name = register_env(lambda: SpaceEnv(space, spaces.Discrete(2)))
    assert "makes a model of 1008 arrays, more than the limit of 960" in refuse(env_name=env_name, n_steps=64)


def test_statistics_count_in_the_size_of_a_model(register_env: RegisterEnv) -> None:
    # 2 * 18 weights of each of 300000 numbers, with Adam's moments, are 123.6 MiB, and two statistics of each 4.6.
    env_name = register_env(lambda: LineEnv(observation_size=300_000))
    request: dict[str, Any] = {"env_name": env_name, "n_steps": 32, "n_envs": 1, "batch_size": 32, "horizon": 16}
    assert resolve(**request, net_arch=[18], normalize=False).net_arch == [18]
    assert "makes a model of 129 MiB, more than the limit of 126 MiB" in refuse(
        **request, net_arch=[18], normalize=True
    )


def test_screens_go_through_the_networks_in_small_parts() -> None:
    env = SpaceEnv(SCREEN, spaces.Discrete(2))
    model = GRPO("CnnPolicy", env, n_steps=256, n_epochs=1, horizon=4, seed=0, kl_coef=0.1)
    sizes: list[int] = []
    model.policy.features_extractor.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    model.learn(256)
    assert sum(sizes) >= 3 * 200  # values before and after each step, and one epoch
    assert max(sizes) <= 148  # 148 * 28224 numbers are 2 ** 22, 16 MiB


def test_a_general_preset_leaves_room_for_episodes_of_large_images(register_env: RegisterEnv) -> None:
    # A group of two episodes of 1000 screens of 96 x 96 x 3 pixels takes 2 * 1000 * 4 * 27648 bytes, 211 MiB.
    screen = spaces.Box(0, 255, (96, 96, 3), np.uint8)
    env_name = register_env(lambda: SpaceEnv(screen, spaces.Discrete(4)), max_episode_steps=1000)
    config = resolve(env_name=env_name, total_timesteps=10_000, group_mode="episode")
    assert config.preset == "general-image-episodes"
    assert config.n_steps <= 2 * 1000 / 16
