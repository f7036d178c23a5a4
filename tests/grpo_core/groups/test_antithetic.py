"""The branches of a pair draw opposite noise, whoever plays them, and each alone is drawn as ever."""

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo import GRPO
from grpo_core.groups.antithetic import AntitheticGenerator

_OF_TORCH = r"antithetic_actions=True.*networks that are not SB3's own"


class OwnPolicy(ActorCriticPolicy):
    """Counts as a network of the user's own."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net.register_forward_hook(lambda *_: None)


class Drifting(gym.Env[Any, Any]):
    """Its episodes are of different lengths; what copies of it cost lets one branch be played after the other."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = float(self.np_random.normal())
        return np.array([self.x], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x += float(action[0]) + 0.1 * float(action[1])
        return np.array([self.x], np.float32), -abs(self.x), abs(self.x) > 1.5, False, {}


def collect(env: Any, **settings: Any) -> tuple[Any, Any]:
    """Return the noise of one rollout, ``(horizon, n_groups, group_size, action_size)``, and its step mask."""
    model = GRPO("MlpPolicy", env, n_epochs=1, seed=3, device="cpu", **{"antithetic_actions": True, **settings})
    before = model.make_actor()
    model.learn(1)
    rollout = model.rollout_buffer
    live = rollout.step_mask
    noise = np.full((*live.shape, *rollout.actions.shape[3:]), np.nan)
    means = before.best_actions(rollout.observations[live])
    noise[live] = rollout.actions[live] - means  # the standard deviation is 1 at first
    return noise, live


@pytest.mark.parametrize(
    ("make_env", "settings"),
    [
        (lambda: "Pendulum-v1", {"n_steps": 128, "horizon": 16}),
        (lambda: "Pendulum-v1", {"n_steps": 192, "horizon": 16, "group_size": 3}),
        (lambda: make_vec_env("Pendulum-v1", 2), {"n_steps": 64, "horizon": 16}),
        (Drifting, {"n_steps": 128, "horizon": 16}),
        (Drifting, {"n_steps": 128, "horizon": 16, "fill_rollouts": True}),
        (Drifting, {"n_steps": 64, "group_mode": "episode"}),
        (lambda: make_vec_env(Drifting, 2), {"n_steps": 64, "group_mode": "episode", "group_size": 4}),
    ],
)
def test_every_second_branch_has_the_opposite_noise(make_env: Any, settings: dict[str, Any]) -> None:
    noise, live = collect(make_env(), **settings)
    n_pairs = noise.shape[2] // 2
    both = live[:, :, : 2 * n_pairs : 2] & live[:, :, 1 : 2 * n_pairs : 2]
    firsts, seconds = noise[:, :, : 2 * n_pairs : 2][both], noise[:, :, 1 : 2 * n_pairs : 2][both]
    assert len(firsts) > 8
    np.testing.assert_allclose(firsts, -seconds, atol=1e-5)
    alone = noise[live].reshape(-1)
    assert abs(alone.std() - 1.0) < 0.25
    if noise.shape[2] == 3:
        assert abs(np.corrcoef(noise[:, :, 2].ravel(), noise[:, :, 0].ravel())[0, 1]) < 0.5


def test_without_it_branches_draw_independently() -> None:
    noise, live = collect("Pendulum-v1", n_steps=128, horizon=16, antithetic_actions=False)
    assert live.all()
    assert abs(np.corrcoef(noise[:, :, 0].ravel(), noise[:, :, 1].ravel())[0, 1]) < 0.5


def test_a_branch_whose_partner_has_ended_goes_on_by_itself() -> None:
    rng = AntitheticGenerator(np.random.default_rng(0))
    first = rng.draw_for([(0, 0, 0), (0, 1, 0)]).standard_normal((2, 3), dtype=np.float32)
    second = rng.draw_for([(0, 0, 1), (0, 1, 1), (0, 2, 1)]).standard_normal((3, 3), dtype=np.float32)
    assert (second[:2] == -first).all()
    assert abs(second[2]).min() > 0
    again = rng.draw_for([(0, 0, 1)]).standard_normal((1, 3), dtype=np.float32)
    assert (again != -first[0]).all(), "noise is negated once"


def test_the_gradient_is_the_same_and_what_both_share_cancels() -> None:
    # One step: an action earns `effect` times itself, and what both branches share comes on top.
    rng, effect, n = np.random.default_rng(0), 0.5, 100_000
    noise, shared, own = rng.normal(size=(n, 2)), rng.normal(0, 2, (n, 1)), rng.normal(size=(n, 2))
    places = [(0, group, branch) for group in range(n) for branch in range(2)]
    pairs = AntitheticGenerator(rng).draw_for(places).standard_normal(2 * n).reshape(n, 2)
    gradients = {}
    for name, drawn in {"independent": noise, "opposite": pairs}.items():
        rewards = effect * drawn + shared + own
        gradients[name] = (drawn * rewards).mean(axis=1)
        error = gradients[name].std() / n**0.5
        assert abs(gradients[name].mean() - effect) < 4 * error, name
    assert gradients["opposite"].var() < 0.5 * gradients["independent"].var()


def test_what_has_no_opposite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"antithetic_actions=True.*only the noise of continuous actions"):
        GRPO("MlpPolicy", "CartPole-v1", antithetic_actions=True)
    with pytest.raises(ValueError, match=_OF_TORCH):
        GRPO(OwnPolicy, "Pendulum-v1", antithetic_actions=True)


def test_a_policy_of_other_layers_is_refused_before_anything_is_played() -> None:
    saved = io.BytesIO(GRPO(OwnPolicy, "Pendulum-v1", device="cpu").to_bytes())
    with pytest.raises(ValueError, match=_OF_TORCH):
        GRPO.load(saved, policy=OwnPolicy, antithetic_actions=True)
    model = GRPO("MlpPolicy", "Pendulum-v1", antithetic_actions=True, device="cpu")
    model.policy.action_net.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=_OF_TORCH):
        model.learn(64)
    assert model._last_obs is None, "no episode has begun"


def test_a_layer_that_a_callback_replaces_is_refused_by_the_next_rollout() -> None:
    model = GRPO("MlpPolicy", "Pendulum-v1", antithetic_actions=True, n_epochs=1, device="cpu")

    def watch(*_: Any) -> bool:
        model.policy.action_net.register_forward_hook(lambda *_: None)
        return True

    with pytest.raises(ValueError, match=_OF_TORCH):
        model.learn(2 * model.n_steps, watch)
    assert model.num_timesteps == model.n_steps
