"""GRPO on a GPU: it learns what it learns on the CPU, and its files go both ways."""

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core.checkpoints import checkpoint
from grpo_core.checkpoints.training_file import KeepCheckpoint, resume_training
from grpo_core.saving import model_file
from tests.sb3.environments import ACTION_SPACES, OBSERVATION_SPACES, MaskedMatchEnv, MatchEnv
from tests.sb3.small_models import MODES, POLICY_OF, build, list_combinations, sample_observations
from tests.weights import copy_weights, is_same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: make test-gpu is for machines with one")


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let cuDNN convolve as exactly as the CPU: by default it takes TF32, with 10 bits of mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def build_on(device: str, observation: str = "box", action: str = "discrete", **changes: Any) -> GRPO:
    """Build a small model on a device over spaces by their names."""
    env = DummyVecEnv([lambda: MatchEnv(OBSERVATION_SPACES[observation], ACTION_SPACES[action])] * 2)
    return build(env, POLICY_OF[observation], device=device, **changes)


class _StopAt(BaseCallback):
    """Ends a training after some of its steps."""

    def __init__(self, n_timesteps: int) -> None:
        super().__init__()
        self._n_timesteps = n_timesteps

    def _on_step(self) -> bool:
        return self.num_timesteps < self._n_timesteps


def move(model: GRPO, device: str, **arguments: Any) -> GRPO:
    """Save a model and load it on another device."""
    return GRPO.load(io.BytesIO(model.to_bytes()), device=device, **arguments)


def test_the_device_is_chosen_as_stable_baselines_chooses_it() -> None:
    assert build_on("auto").device.type == "cuda"
    assert build_on("cuda").policy.device.type == "cuda"
    assert build_on("cpu").policy.device.type == "cpu"


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_a_seed_gives_the_same_first_weights_on_both(observation: str) -> None:
    assert is_same(copy_weights(build_on("cuda", observation)), copy_weights(build_on("cpu", observation)))


@pytest.mark.parametrize(("observation", "action", "mode", "n_envs"), list_combinations())
def test_one_update_moves_the_weights_as_on_the_cpu(observation: str, action: str, mode: str, n_envs: int) -> None:
    def make_env() -> MatchEnv:
        return MatchEnv(OBSERVATION_SPACES[observation], ACTION_SPACES[action])

    # Plain gradient steps: Adam would blow up the rounding of gradients that are next to nothing.
    kwargs = {"net_arch": [8], "optimizer_class": torch.optim.SGD}
    if observation in ("image", "dict"):
        size = "features_dim" if observation == "image" else "cnn_output_dim"
        kwargs["features_extractor_kwargs"] = {size: 8}
    models = [
        build(
            DummyVecEnv([make_env] * n_envs), POLICY_OF[observation], mode, device=device, learning_rate=0.1,
            policy_kwargs=dict(kwargs),
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    first = copy_weights(models[0])
    for model in models:
        model.learn(1)  # also sets up what train() needs
    # The draws of the two devices differ: both learn again, from the same weights and steps.
    for model in models:
        model.policy.load_state_dict(first)
        model._batch = models[0]._batch
        model.rng = np.random.default_rng(0)
        model.train()
    after = [copy_weights(model) for model in models]
    assert not is_same(first, after[0])
    for name, weights in after[0].items():
        torch.testing.assert_close(after[1][name], weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_a_file_answers_alike_on_the_other_device(observation: str, device: str) -> None:
    other = "cpu" if device == "cuda" else "cuda"
    model = build_on(device, observation)
    model.learn(24)
    moved = move(model, other)
    assert moved.policy.device.type == other
    assert is_same(copy_weights(model), copy_weights(moved))
    assert moved.to_bytes() == model.to_bytes()
    seen = sample_observations(model, 16)
    assert np.array_equal(model.predict(seen, deterministic=True)[0], moved.predict(seen, deterministic=True)[0])
    served = model_file.from_bytes(model.to_bytes()).make_actor()
    for actor in (model.make_actor(), moved.make_actor(), served):
        np.testing.assert_allclose(actor.action_probs(seen), model.make_actor().action_probs(seen), atol=1e-5)
        np.testing.assert_allclose(actor.values(seen), model.make_actor().values(seen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_training_goes_on_on_the_other_device(device: str) -> None:
    model = build_on(device)
    model.learn(24)
    moved = move(model, "cpu" if device == "cuda" else "cuda", env=model.env)
    assert moved.num_timesteps == model.num_timesteps
    before = copy_weights(moved)
    moved.learn(24, reset_num_timesteps=False)
    assert not is_same(before, copy_weights(moved))
    assert moved.num_timesteps >= 48


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_weights_again(mode: str) -> None:
    files = []
    for _ in range(2):
        model = build_on("cuda", mode=mode)
        files.append(model.learn(100).to_bytes())
        torch.rand(3, device="cuda")  # what the process draws elsewhere must not matter
    assert files[0] == files[1]


def test_the_generators_of_the_process_are_left_alone() -> None:
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state(), torch.random.get_rng_state()
    model = build_on("cuda", action="box")
    model.learn(48)
    model.predict(sample_observations(model, 4), deterministic=False)
    after = torch.cuda.get_rng_state(), torch.random.get_rng_state()
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("arguments", [{}, {"kl_coef": 0.1, "ref_sync_steps": 100}, {"anchor_selection": "archive"}])
def test_a_checkpoint_goes_on_to_the_bit(arguments: dict[str, Any], tmp_path: Any) -> None:
    def make_model() -> GRPO:
        env = VecNormalize(make_vec_env("CartPole-v1", 2))
        return GRPO("MlpPolicy", env, seed=3, device="cuda", n_steps=64, horizon=16, n_epochs=2, **arguments)

    whole, interrupted, resumed = make_model(), make_model(), make_model()
    whole.learn(600)
    interrupted.learn(600, [KeepCheckpoint(tmp_path / "training", every_steps=100), _StopAt(300)])
    n_left = resume_training(resumed, tmp_path / "training")
    assert 0 < resumed.num_timesteps < 600
    resumed.learn(n_left, reset_num_timesteps=False)
    assert resumed.to_bytes() == whole.to_bytes()


def test_a_checkpoint_of_the_gpu_goes_on_on_the_cpu() -> None:
    model = build_on("cuda")
    model.learn(48)
    content = checkpoint.to_bytes(model)
    resumed = build_on("cpu")
    assert checkpoint.restore(resumed, checkpoint.from_bytes(content)) is None
    assert is_same(copy_weights(model), copy_weights(resumed))
    resumed.learn(48, reset_num_timesteps=False)
    assert resumed.num_timesteps > model.num_timesteps


def test_masked_actions_are_never_taken() -> None:
    model = build(MaskedMatchEnv(), device="cuda")
    model.learn(48)  # the environment raises where a masked action is taken


def test_reward_functions_take_and_give_tensors_of_the_cpu() -> None:
    seen = []

    def pay(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        seen.append({tensor.device.type for tensor in (state, action, next_state)})
        return torch.ones(len(state), 1, device="cuda")  # one that computes on the GPU

    model = build_on("cuda", reward_function=pay)
    model.learn(32)
    assert seen
    assert all(devices == {"cpu"} for devices in seen)


class OwnPolicy(ActorCriticPolicy):
    """One that only torch can run."""


@pytest.mark.parametrize("policy", ["MlpPolicy", OwnPolicy])
def test_rollout_workers_play_for_a_policy_on_the_gpu_as_one_process_does(policy: Any) -> None:
    files = []
    for n_workers in (1, 2):
        env = make_vec_env("CartPole-v1", 2)
        model = GRPO(
            policy, env, n_steps=64, horizon=8, seed=0, device="cuda", n_rollout_workers=n_workers, n_rollout_shards=8
        )
        before = copy_weights(model)
        model.learn(256)
        assert not is_same(before, copy_weights(model))
        files.append(copy_weights(model))
    assert is_same(*files)


def test_sb3_evaluates_and_a_policy_of_the_gpu_learns() -> None:
    model = GRPO("MlpPolicy", gym.make("CartPole-v1"), seed=1, device="cuda", learning_rate=1e-3, n_epochs=4)
    model.learn(20_000)
    assert np.mean(evaluate_policy(model, make_vec_env("CartPole-v1", 4), n_eval_episodes=20)[0]) > 200
