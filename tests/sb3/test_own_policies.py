"""Policies with layers, optimizers and hooks of the user's own are trained as they are, and come back from a file."""

import copy
import functools
import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor

from grpo import GRPO
from grpo_core.actor.actor import Actor
from grpo_core.checkpoints.training_file import KeepCheckpoint, resume_training
from grpo_core.options.policies import OPTIMIZERS
from grpo_core.saving import model_file
from grpo_core.update.structure import is_learning_watched
from grpo_core.update.torch_actor import TorchActor
from tests.sb3.environments import ACTION_SPACES, MASKABLE, OBSERVATION_SPACES, MaskedMatchEnv, MatchEnv
from tests.sb3.small_models import MODES, build, sample_observations
from tests.suites import DEVICE
from tests.weights import copy_weights, is_same


class Features(BaseFeaturesExtractor):
    """Joins whatever is observed, through a layer and a normalisation."""

    def __init__(self, space: spaces.Space[Any], width: int = 6, batch: bool = False) -> None:
        super().__init__(space, width)
        self.layer = torch.nn.LazyLinear(width)
        self.norm = torch.nn.BatchNorm1d(width) if batch else torch.nn.LayerNorm(width)
        sample = space.sample()
        parts = sample.values() if isinstance(sample, dict) else [sample]
        self.layer(torch.zeros(1, sum(np.size(part) for part in parts) + self._count_choices(space)))

    @staticmethod
    def _count_choices(space: spaces.Space[Any]) -> int:
        """Count what one-hot vectors add to the numbers."""
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
        n_added = 0
        for part in parts:
            if isinstance(part, spaces.Discrete):
                n_added += int(part.n) - 1
            elif isinstance(part, spaces.MultiDiscrete):
                n_added += int(part.nvec.sum()) - len(part.nvec)
        return n_added

    def forward(self, observations: Any) -> torch.Tensor:
        parts = observations.values() if isinstance(observations, dict) else [observations]
        joined = torch.cat([part.flatten(start_dim=1) for part in parts], dim=1)
        features: torch.Tensor = self.norm(self.layer(joined))
        return features


class TwoTowers(torch.nn.Module):
    """A network as SB3's guide to custom policies shows it: it has none of the names of SB3's own."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = 5, 4
        self.tower = torch.nn.Sequential(torch.nn.Linear(n_features, 5), torch.nn.SiLU())
        self.other_tower = torch.nn.Sequential(torch.nn.Linear(n_features, 4), torch.nn.SiLU())

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        return self.tower(features)  # type: ignore[no-any-return]

    def forward_critic(self, features: torch.Tensor) -> torch.Tensor:
        return self.other_tower(features)  # type: ignore[no-any-return]


class TowerPolicy(ActorCriticPolicy):
    """The policy around them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["ortho_init"] = False
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = TwoTowers(self.features_dim)  # type: ignore[assignment]


OWN_KWARGS: dict[str, Any] = {"features_extractor_class": Features, "net_arch": [8]}


def reload(model: GRPO, **arguments: Any) -> GRPO:
    return GRPO.load(io.BytesIO(model.to_bytes()), device=DEVICE, **arguments)


def measure_first_kl(model: GRPO) -> float:
    """Return the approximate KL of the first minibatch after a rollout: 0 if who acted is who is trained."""
    model.n_epochs, model.batch_size = 1, 10**6
    model.learn(1)
    return float(model.logger.name_to_value["train/approx_kl"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("action", ACTION_SPACES)
def test_an_own_extractor_learns_over_every_action_space(action: str, mode: str) -> None:
    if mode == "action" and action != "discrete":
        pytest.skip("only a Discrete action space is enumerated")
    model = build(MatchEnv(action_space=ACTION_SPACES[action]), mode=mode, policy_kwargs=OWN_KWARGS)
    before = copy_weights(model)
    assert abs(measure_first_kl(model)) < 1e-6
    after = copy_weights(model)
    assert not torch.equal(before["features_extractor.layer.weight"], after["features_extractor.layer.weight"])
    assert not torch.equal(before["value_net.weight"], after["value_net.weight"])


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_an_own_extractor_sees_every_observation_space(observation: str) -> None:
    policy = "MultiInputPolicy" if observation == "dict" else "MlpPolicy"
    model = build(MatchEnv(OBSERVATION_SPACES[observation]), policy, policy_kwargs=OWN_KWARGS)
    assert abs(measure_first_kl(model)) < 1e-6
    shown = sample_observations(model, 5)
    actor = model.make_actor()
    assert isinstance(actor, TorchActor)
    np.testing.assert_array_equal(actor.best_actions(shown), model.predict(shown, deterministic=True)[0])
    decision = actor.act(shown, False, np.random.default_rng(0))
    assert (decision.actions.shape, decision.values.shape, decision.probs.shape) == ((5,), (5,), (5, 3))
    np.testing.assert_allclose(decision.probs.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.exp(actor.log_probs(shown)), decision.probs, rtol=1e-5)


@pytest.mark.parametrize("action", MASKABLE)
def test_an_own_policy_is_never_given_a_masked_action(action: str) -> None:
    model = build(MaskedMatchEnv(action_space=ACTION_SPACES[action]), policy_kwargs=OWN_KWARGS)  # it raises at one
    assert abs(measure_first_kl(model)) < 1e-6


def test_an_own_policy_draws_from_the_models_own_generator() -> None:
    def train(disturb: bool) -> dict[str, torch.Tensor]:
        model = build(policy=TowerPolicy, policy_kwargs={})
        state = torch.random.get_rng_state()
        if disturb:
            torch.manual_seed(99)
            state = torch.random.get_rng_state()
        model.learn(32)
        assert torch.equal(torch.random.get_rng_state(), state)
        return copy_weights(model)

    assert is_same(train(False), train(True))


class Noise(torch.nn.Module):
    """Adds noise, also to what is only evaluated."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + 0.1 * torch.randn_like(inputs)


@pytest.mark.parametrize("layer", [functools.partial(torch.nn.Dropout, 0.3), Noise], ids=["dropout", "noise"])
def test_layers_that_draw_do_so_from_the_models_own_generator(layer: Any) -> None:
    class Drawing(Features):
        def forward(self, observations: Any) -> torch.Tensor:
            features: torch.Tensor = layer().train(self.training)(super().forward(observations))
            return features

    def train(process_seed: int) -> dict[str, torch.Tensor]:
        model = build(policy_kwargs={**OWN_KWARGS, "features_extractor_class": Drawing}, kl_coef=0.1)
        torch.manual_seed(process_seed)
        state = torch.random.get_rng_state()
        model.learn(32)
        assert torch.equal(torch.random.get_rng_state(), state)
        return copy_weights(model)

    assert is_same(train(1), train(2))


def test_every_minibatch_has_noise_of_its_own_and_the_models_draws_stay() -> None:
    seen = list[tuple[float, ...]]()

    def train(draws: bool) -> Any:
        model = build(policy_kwargs=OWN_KWARGS)

        def draw(layer: Any, inputs: Any) -> None:
            if draws and torch.is_grad_enabled():
                seen.append(tuple(torch.rand(4).tolist()))

        model.policy.features_extractor.register_forward_pre_hook(draw)
        model.learn(32)
        return copy_weights(model), model.rng.bit_generator.state

    (quiet, state), (drawing, state_after) = train(False), train(True)
    assert is_same(quiet, drawing)
    assert state == state_after
    assert len(seen) > 4
    assert len(set(seen)) == len(seen)


def test_an_own_policy_learns_to_match() -> None:
    env = MatchEnv(episode_length=10)
    model = build(env, policy=TowerPolicy, policy_kwargs={}, n_steps=64, batch_size=32, learning_rate=1e-2, n_epochs=10)
    model.learn(1500)
    rewards = model.rollout_buffer.rewards[model.rollout_buffer.step_mask]
    assert rewards.mean() > 0.6, "random choices earn about 0"


def test_parameters_of_values_alone_are_found_in_any_policy() -> None:
    model = build(policy=TowerPolicy, policy_kwargs={})
    names = {id(p): name for name, p in model.policy.named_parameters()}
    of_values = [names[id(p)] for p in model.policy.optimizer.param_groups[1]["params"]]
    assert sorted(of_values) == [
        *("mlp_extractor.other_tower.0.bias", "mlp_extractor.other_tower.0.weight"),
        *("value_net.bias", "value_net.weight"),
    ]
    model.learn(16)
    rates = [group["lr"] for group in model.policy.optimizer.param_groups]
    assert rates == [pytest.approx(3e-4), pytest.approx(3e-3)]


def test_parameters_of_values_alone_are_found_without_gradients_too() -> None:
    with torch.no_grad():
        model = build(policy=TowerPolicy, policy_kwargs={})
        loaded = reload(model, policy=TowerPolicy)
    assert [[len(group["params"]) for group in one.policy.optimizer.param_groups] for one in (model, loaded)] == [
        [4, 4],
        [4, 4],
    ]


def test_an_own_policy_comes_back_with_its_parts() -> None:
    kwargs = {**OWN_KWARGS, "features_extractor_kwargs": {"batch": True}}
    model = build(policy=TowerPolicy, policy_kwargs=kwargs)
    model.learn(16)
    assert any(name.endswith("running_mean") for name in copy_weights(model))
    parts: dict[str, Any] = {"policy": TowerPolicy, "policy_kwargs": {"features_extractor_class": Features}}
    as_sb3 = {"policy_class": TowerPolicy, "policy_kwargs": kwargs}
    for arguments in (parts, as_sb3, {"custom_objects": as_sb3}):
        loaded = reload(model, env=MatchEnv(), **arguments)
        assert is_same(copy_weights(model), copy_weights(loaded)), "the averages of batch normalisation included"
        moments, restored = (one.policy.optimizer.state_dict()["state"] for one in (model, loaded))
        assert all(torch.equal(moments[i]["exp_avg"], restored[i]["exp_avg"]) for i in moments)
        loaded.learn(16)


INFINITE = torch.full((6,), -torch.inf)


@pytest.mark.parametrize(
    "kept",
    [
        *(INFINITE, torch.full((6,), 1e300, dtype=torch.float64), torch.arange(6).bool(), torch.ones(6) * 1j),
        *((torch.ones(6) * 1j).conj(), torch.full((6,), 1.5, dtype=torch.bfloat16)),
        torch.nn.Parameter(INFINITE, requires_grad=False),
        torch.nn.Parameter(torch.ones(6, dtype=torch.complex64)),
        torch.nn.Parameter(torch.full((6,), 1.5, dtype=torch.bfloat16)),
    ],
    ids=lambda kept: f"{type(kept).__name__} {kept.dtype} {kept[1]}",
)
def test_whatever_a_layer_keeps_comes_back(kept: torch.Tensor, tmp_path: Path) -> None:
    class Keeping(Features):
        def __init__(self, space: spaces.Space[Any]) -> None:
            super().__init__(space)
            if isinstance(kept, torch.nn.Parameter):
                self.kept = torch.nn.Parameter(kept.detach().clone(), kept.requires_grad)
            else:
                self.register_buffer("kept", kept)

        def forward(self, observations: Any) -> torch.Tensor:
            is_used = self.kept.requires_grad
            features: torch.Tensor = super().forward(observations) * (self.kept.abs().float() if is_used else 1.0)
            return features

    def make() -> GRPO:
        return build("CartPole-v1", policy_kwargs={"features_extractor_class": Keeping, "net_arch": [8]})

    path, model, resumed = tmp_path / "training.zip", make(), make()
    model.learn(64, KeepCheckpoint(path, every_steps=16))
    loaded = reload(model, policy_kwargs={"features_extractor_class": Keeping})
    assert is_same(copy_weights(model), copy_weights(loaded))
    resumed.learn(resume_training(resumed, path), reset_num_timesteps=False)
    assert is_same(copy_weights(model), copy_weights(resumed))


class Shaped(Features):
    """Is told a shape."""

    def __init__(self, space: spaces.Space[Any], shapes: Any = None) -> None:
        super().__init__(space)
        self.shapes = shapes


def test_tuples_in_arguments_come_back_as_tuples() -> None:
    shapes = {"first": (6, 1), "others": [(2, 3), ()]}
    own: dict[str, Any] = {"features_extractor_class": Shaped}
    kwargs = {**own, "features_extractor_kwargs": {"shapes": shapes}}
    model = build(policy_kwargs=kwargs)
    content = model.to_bytes()
    for given in (own, kwargs):
        loaded = GRPO.load(io.BytesIO(content), policy_kwargs=given)
        assert loaded.policy.features_extractor.shapes == shapes
    model = build(policy_kwargs={**own, "features_extractor_kwargs": {"shapes": {"tuple": [1]}}})
    with pytest.raises(ValueError, match="features_extractor_kwargs="):  # it would be taken for a tuple
        reload(model, policy_kwargs=own)


def test_a_file_of_before_tuples_were_told_from_lists_takes_either(tmp_path: Path) -> None:
    def make(shapes: Any) -> GRPO:
        own = {"features_extractor_class": Shaped, "features_extractor_kwargs": {"shapes": shapes}, "net_arch": [8]}
        return build(gym.make("CartPole-v1"), policy_kwargs=own)

    listed, path = make([6, 1]), tmp_path / "training.zip"
    listed.learn(64, KeepCheckpoint(path, every_steps=16))
    assert reload(listed, policy_kwargs=make((6, 1)).policy_kwargs).policy.features_extractor.shapes == (6, 1)
    assert resume_training(make((6, 1)), path) >= 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, r"GRPO\.load\(path, policy=TowerPolicy, policy_kwargs=dict\(features_extractor_class=Features\)\)"),
        ({"policy": TowerPolicy}, r"does not hold: Features\. Pass them to load"),
        ({"policy": TowerPolicy, "policy_kwargs": {**OWN_KWARGS, "net_arch": [9]}}, r"are not those of the model"),
    ],
    ids=str,
)
def test_missing_or_other_parts_are_named_on_load(arguments: dict[str, Any], said: str) -> None:
    model = build(policy=TowerPolicy, policy_kwargs=OWN_KWARGS)
    with pytest.raises(ValueError, match=said):
        reload(model, **arguments)


def test_the_same_policy_kwargs_are_accepted_on_load_and_others_refused() -> None:
    kwargs = {"net_arch": [8], "activation_fn": torch.nn.ReLU}
    model = build(policy_kwargs=kwargs)
    assert is_same(copy_weights(model), copy_weights(reload(model, policy_kwargs=kwargs)))
    with pytest.raises(ValueError, match=r"policy_kwargs are not those of the model\. Stored: .*\[8\].*\[9\]"):
        reload(model, policy_kwargs={**kwargs, "net_arch": [9]})
    with pytest.raises(ValueError, match="policy_kwargs are not those of the model"):
        reload(model, policy=TowerPolicy)


def test_a_file_of_an_own_policy_is_not_read_where_nothing_can_run_it() -> None:
    content = build(policy_kwargs=OWN_KWARGS).to_bytes()
    with pytest.raises(
        model_file.OwnPartsError, match=r"features_extractor_class=Features\), and a model file holds no"
    ):
        model_file.from_bytes(content)


class SiLU(torch.nn.SiLU):
    """One of the user's own, which the file must not take for torch's."""


@pytest.mark.parametrize("activation", [SiLU, torch.nn.Flatten, functools.partial(torch.nn.LeakyReLU, 0.3)], ids=str)
def test_any_activation_is_trained_and_comes_back(activation: Any) -> None:
    model = build(policy_kwargs={"net_arch": [8], "activation_fn": activation})
    assert abs(measure_first_kl(model)) < 1e-6
    loaded = reload(model, policy_kwargs={"activation_fn": activation})
    assert is_same(copy_weights(model), copy_weights(loaded))
    with pytest.raises(ValueError, match="activation_fn="):
        reload(model)


@pytest.mark.parametrize("activation", [torch.nn.SiLU, torch.nn.Softsign, torch.nn.PReLU, torch.nn.Identity])
def test_an_activation_of_torchs_comes_back_by_its_name(activation: Any) -> None:
    model = build(policy_kwargs={"net_arch": [8], "activation_fn": activation})
    model.learn(16)
    for given in ({}, {"policy_kwargs": {"activation_fn": activation}}):
        loaded = reload(model, env=MatchEnv(), **given)
        assert is_same(copy_weights(model), copy_weights(loaded))
        assert loaded.policy_kwargs["activation_fn"] is activation
        loaded.learn(16)
    with pytest.raises(ValueError, match="policy_kwargs are not those of the model"):
        reload(model, policy_kwargs={"activation_fn": torch.nn.Mish})


@pytest.mark.parametrize("activation", ["Tanh", "ReLU", "ELU", "LeakyReLU", "SiLU"])
def test_an_activation_of_torchs_comes_back_beside_a_part_of_ones_own(activation: str) -> None:
    own, kind = {"features_extractor_class": Features}, getattr(torch.nn, activation)
    model = build(policy_kwargs={**own, "activation_fn": kind})
    loaded = reload(model, policy_kwargs=own)
    assert is_same(copy_weights(model), copy_weights(loaded))
    assert loaded.policy_kwargs["activation_fn"] is kind


class OwnAdam(torch.optim.Adam):
    """An optimizer class of a user's own."""


@pytest.mark.parametrize("optimizer_class", [torch.optim.NAdam, torch.optim.Rprop, torch.optim.Adafactor, OwnAdam])
def test_any_optimizer_trains_and_comes_back(optimizer_class: Any) -> None:
    model = build(policy_kwargs={"net_arch": [8], "optimizer_class": optimizer_class})
    before = copy_weights(model)
    model.learn(16)
    assert not is_same(before, copy_weights(model))
    loaded = reload(model, env=MatchEnv(), policy_kwargs={"optimizer_class": optimizer_class, "net_arch": [8]})
    moments, restored = (one.policy.optimizer.state_dict()["state"] for one in (model, loaded))
    for index, state in moments.items():
        for name, moment in state.items():  # some are kept on the CPU
            assert moment is None or torch.equal(torch.as_tensor(moment).cpu(), restored[index][name].cpu())
    loaded.learn(16)


def test_an_optimizer_that_is_not_torchs_has_to_be_given_on_load() -> None:
    model = build(policy_kwargs={"optimizer_class": OwnAdam})
    with pytest.raises(ValueError, match=r"GRPO\.load\(path, policy_kwargs=dict\(optimizer_class=OwnAdam\)\)"):
        reload(model)
    assert isinstance(reload(model, policy_kwargs={"optimizer_class": OwnAdam}).policy.optimizer, OwnAdam)
    assert isinstance(model_file.from_bytes(model.to_bytes()).make_actor(), Actor), "acting needs no optimizer"


class Keeping(torch.optim.SGD):
    """Keeps what optimizers of other packages do: lists, numbers, and counters of a group."""

    def __init__(self, parameters: Any, lr: float = 1e-3, scale: Any = None) -> None:
        super().__init__(parameters, lr=lr)
        self.scale = scale

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["best"] = torch.full((), float(group["k"]))
            group.setdefault("least", float("inf"))
            for p in group["params"]:
                state = self.state[p]
                state["factors"] = [torch.eye(n) * group["k"] for n in p.shape]
                state["shape"], state["exact"], state["none"] = tuple(p.shape), 0.1 * group["k"], None
                state["by key"] = {0: torch.arange(3), "1": (torch.ones(1, dtype=torch.complex64),)}
        return super().step(closure)


class KeepingFunctions(torch.optim.SGD):
    """Keeps what no file holds."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["precondition"] = lambda gradient: gradient
        return super().step(closure)


class Refusing(torch.optim.SGD):
    """Does not say what it keeps."""

    def state_dict(self) -> Any:
        raise NotImplementedError("ask for the distributed one")


def spell(value: Any) -> Any:
    """Return what an optimizer keeps in a form that can be compared, to the type and the bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: spell(item) for key, item in value.items()}
    return (type(value), [*map(spell, value)]) if isinstance(value, list | tuple) else (type(value), value)


def build_with(optimizer_class: Any, **optimizer_kwargs: Any) -> GRPO:
    kwargs = {"net_arch": [8], "optimizer_class": optimizer_class, "optimizer_kwargs": optimizer_kwargs}
    return build(gym.make("CartPole-v1"), policy_kwargs=kwargs)


def test_whatever_an_own_optimizer_keeps_comes_back(tmp_path: Path) -> None:
    path, model, resumed = tmp_path / "training.zip", build_with(Keeping), build_with(Keeping)
    model.learn(64, KeepCheckpoint(path, every_steps=16))
    loaded = reload(model, env=gym.make("CartPole-v1"), policy_kwargs={"optimizer_class": Keeping})
    resumed.learn(resume_training(resumed, path), reset_num_timesteps=False)
    for other in (loaded, resumed):
        ours, theirs = (one.policy.optimizer.state_dict() for one in (model, other))
        for group in [*ours["param_groups"], *theirs["param_groups"]]:
            del group["lr"]  # each update sets it first
        assert spell(theirs) == spell(ours)
    loaded.learn(16, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("optimizer_class", "said"),
    [
        (KeepingFunctions, "the state of KeepingFunctions is not kept: no file holds a function, as in precondition"),
        (Refusing, "the state of Refusing is not kept: .*ask for the distributed one"),
    ],
)
def test_a_state_that_no_file_holds_is_missed_and_ends_nothing(optimizer_class: Any, said: str, tmp_path: Path) -> None:
    path, model, resumed = tmp_path / "training.zip", build_with(optimizer_class), build_with(optimizer_class)
    model.learn(64, KeepCheckpoint(path, every_steps=16))
    with pytest.warns(UserWarning, match=f"^{said}; what is missing begins anew"):
        loaded = reload(model, env=gym.make("CartPole-v1"), policy_kwargs={"optimizer_class": optimizer_class})
    assert is_same(copy_weights(model), copy_weights(loaded))
    with pytest.warns(UserWarning, match=f"not exactly as before: {said}") as warned:
        n_left = resume_training(resumed, path)
    assert str(warned[0].message).count("is not kept") == 1
    resumed.learn(n_left, reset_num_timesteps=False)


def test_a_failure_to_describe_a_training_does_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no way to say it")

    monkeypatch.setattr(model_file, "to_bytes", fail)
    path = tmp_path / "training.zip"
    with pytest.warns(UserWarning, match=r"training\.zip keeps no step .*: no way to say it"):
        build_plain().learn(128, KeepCheckpoint(path, every_steps=64))
    assert not path.exists()


def test_arguments_of_an_optimizer_that_no_file_holds_have_to_be_given_on_load() -> None:
    model = build_with(Keeping, scale=len)
    with pytest.raises(ValueError, match=r"policy_kwargs=dict\(optimizer_kwargs=dict\(scale=\.\.\.\)\)\)"):
        reload(model, policy_kwargs={"optimizer_class": Keeping})
    given = {"optimizer_class": Keeping, "optimizer_kwargs": {"scale": len}}
    assert reload(model, policy_kwargs=given).policy.optimizer.scale is len  # type: ignore[attr-defined]
    read = model_file.from_bytes(model.to_bytes(), with_optimizer=True)
    del read.meta["network"]["lost_optimizer_kwargs"]  # as earlier versions wrote it
    older = model_file.to_bytes(read.meta, read.weights, read.optimizer)
    for kwargs in (given, {"optimizer_class": Keeping}):
        GRPO.load(io.BytesIO(older), policy_kwargs=kwargs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_of_torchs_optimizers_a_file_holds_arrays_alone(name: str) -> None:
    model = build_with(OPTIMIZERS[name])
    model.learn(16)
    assert model_file.from_bytes(model.to_bytes()).meta["optimizer"].keys() == {"parameters"}


# What is done to a model of SB3's own layers after it was built.


def build_plain(**changes: Any) -> GRPO:
    return build(gym.make("CartPole-v1"), n_steps=64, horizon=16, **changes)


@pytest.mark.parametrize("kind", ["one group", "two groups", "RMSprop"])
def test_a_replaced_optimizer_takes_the_steps(kind: str) -> None:
    model = build_plain(learning_rate=0.01)
    policy = model.policy
    of_values = [*policy.mlp_extractor.value_net.parameters(), *policy.value_net.parameters()]
    ids = {id(p) for p in of_values}
    of_policy = [p for p in policy.parameters() if id(p) not in ids]
    optimizers: dict[str, Any] = {
        "one group": lambda: torch.optim.SGD(policy.parameters(), lr=1e-3),
        "two groups": lambda: torch.optim.SGD([{"params": of_policy}, {"params": of_values}], lr=1e-3),
        "RMSprop": lambda: torch.optim.RMSprop(policy.parameters(), lr=1e-3),
    }
    policy.optimizer = optimizers[kind]()
    before = copy_weights(model)
    model.learn(64)
    assert not is_same(before, copy_weights(model))
    rates = [group["lr"] for group in policy.optimizer.param_groups]
    assert rates == ([0.01, pytest.approx(0.1)] if kind == "two groups" else [0.01])
    loaded = reload(model, env=gym.make("CartPole-v1"))
    assert is_same(copy_weights(model), copy_weights(loaded))
    loaded.learn(64)


def test_a_file_leaves_a_replaced_optimizer_alone() -> None:
    model = build_plain()
    saved = io.BytesIO(model.learn(64).to_bytes())
    weights = copy_weights(model)
    model.policy.optimizer = torch.optim.Adam(model.policy.parameters())
    model.learn(64)
    moments = {p: {**state} for p, state in model.policy.optimizer.state.items()}
    model.set_parameters(saved)  # type: ignore[arg-type]
    assert is_same(weights, copy_weights(model))
    for p, state in moments.items():
        assert torch.equal(model.policy.optimizer.state[p]["exp_avg"], state["exp_avg"])
    model.learn(64)  # with moments of other parameters' shapes it would raise
    with pytest.raises(ValueError, match="exact_match=False is for a dict of parameters"):
        model.set_parameters(saved, exact_match=False)  # type: ignore[arg-type]


def test_a_replaced_optimizer_that_cannot_take_the_steps_is_refused() -> None:
    model = build_plain()
    model.policy.optimizer = torch.optim.LBFGS(model.policy.parameters())
    with pytest.raises(ValueError, match=r"policy\.optimizer='LBFGS' is not allowed: .* use torch\.optim\.Adam"):
        model.learn(64)
    model = build_plain()
    model.policy.optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"trains no parameter of the policy.*torch\.optim\.SGD"):
        model.learn(64)


def test_hooks_are_called_and_gradients_left() -> None:
    model, calls = build_plain(), set[str]()
    parameters: Any = model.policy.parameters()
    for p in parameters:
        p.register_hook(lambda gradient: calls.add("parameter"))
    model.policy.optimizer.register_step_post_hook(lambda *_: calls.add("optimizer"))
    model.policy.mlp_extractor.register_forward_hook(lambda *_: calls.add("forward"))
    model.learn(64)
    assert calls == {"parameter", "optimizer", "forward"}
    assert all(p.grad is not None for p in model.policy.parameters())


@pytest.mark.parametrize("kind", ["parameter", "accumulated", "before step", "scheduler"])
def test_a_hook_that_changes_nothing_changes_nothing(kind: str) -> None:
    watched, plain = build_plain(), build_plain()
    calls = list[str]()
    optimizer: Any = watched.policy.optimizer
    weight: Any = watched.policy.value_net.weight
    if kind == "parameter":
        weight.register_hook(lambda gradient: calls.append(kind))
    elif kind == "accumulated":
        weight.register_post_accumulate_grad_hook(lambda _: calls.append(kind))
    elif kind == "before step":
        optimizer.register_step_pre_hook(lambda *_: calls.append(kind))
    else:
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        step = optimizer.step

        def count(*arguments: Any) -> Any:
            calls.append(kind)
            return step(*arguments)

        optimizer.step = count
        assert scheduler.last_epoch == 0
    for model in (watched, plain):
        model.learn(64)
    n_updates = watched._n_updates * -(-watched.rollout_buffer.step_mask.sum() // watched.batch_size)
    assert len(calls) == n_updates
    for name, tensor in copy_weights(plain).items():
        torch.testing.assert_close(copy_weights(watched)[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((ActorCriticPolicy, name) for name in ("forward", "evaluate_actions")),
        *((CategoricalDistribution, name) for name in ("sample", "log_prob", "entropy")),
        *((MlpExtractor, "forward_actor"), (torch.nn.Linear, "forward"), (torch.optim.Adam, "step")),
    ],
)
def test_methods_replaced_on_a_class_are_called(kind: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls, own = build_plain(), list[str](), getattr(kind, name)
    model.learn(64)

    def replaced(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return own(*arguments, **options)

    monkeypatch.setattr(kind, name, replaced)
    model.learn(64)
    assert calls
    monkeypatch.undo()
    assert model._is_known_to_numpy()
    assert not is_learning_watched(model.policy)


def test_a_forward_hook_that_changes_outputs_changes_who_acts_and_who_learns() -> None:
    model = build_plain()
    model.policy.action_net.register_forward_hook(lambda layer, inputs, outputs: outputs * 5.0 + 1.0)
    assert abs(measure_first_kl(model)) < 1e-6
    observations = np.full((1, 4), 0.5, np.float32)
    distribution: Any = model.policy.get_distribution(torch.as_tensor(observations, device=DEVICE)).distribution
    probs = distribution.probs
    np.testing.assert_allclose(model.make_actor().action_probs(observations), probs.detach().cpu().numpy(), rtol=1e-5)


def test_the_fast_learner_leaves_the_gradients_that_autograd_leaves() -> None:
    fast, slow = build_plain(), build_plain()
    slow._uses_fast_path = False
    for model in (fast, slow):
        model.learn(64)
    for p, q in zip(fast.policy.parameters(), slow.policy.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=1e-5)


def replace_head(policy: Any) -> None:
    policy.action_net = torch.nn.Linear(8, 2, device=DEVICE)


def replace_activation(policy: Any) -> None:
    policy.mlp_extractor.policy_net[1] = torch.nn.ReLU()


def replace_hidden_layers(policy: Any) -> None:
    layers = torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.GELU()
    policy.mlp_extractor.policy_net = torch.nn.Sequential(*layers).to(DEVICE)


def append_a_layer(policy: Any) -> None:
    policy.mlp_extractor.policy_net.append(torch.nn.Linear(8, 8, device=DEVICE))


def tie_weights(policy: Any) -> None:
    policy.mlp_extractor.value_net[0].weight = policy.mlp_extractor.policy_net[0].weight


def share_hidden_layers(policy: Any) -> None:
    policy.mlp_extractor.value_net = policy.mlp_extractor.policy_net


def freeze(policy: Any) -> None:
    hidden = policy.mlp_extractor
    (hidden.other_tower if isinstance(hidden, TwoTowers) else hidden.value_net).requires_grad_(False)


def normalize_spectrally(policy: Any) -> None:
    torch.nn.utils.parametrizations.spectral_norm(policy.action_net)


def normalize_weights_the_old_way(policy: Any) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        torch.nn.utils.weight_norm(policy.action_net)


def replace_a_method(policy: Any) -> None:
    own = policy.action_net.forward
    policy.action_net.forward = lambda x: 3.0 * own(x) + 0.5


def script_layers(policy: Any) -> None:
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        policy.mlp_extractor.policy_net = torch.jit.script(policy.mlp_extractor.policy_net)


def trace_layers(policy: Any) -> None:
    trace: Any = torch.jit.trace
    shown = torch.zeros(1, 4, device=DEVICE)
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        policy.mlp_extractor.policy_net = trace(policy.mlp_extractor.policy_net, shown)


CHANGES = [
    *(replace_head, replace_activation, replace_hidden_layers, append_a_layer, tie_weights, share_hidden_layers),
    *(normalize_spectrally, normalize_weights_the_old_way, replace_a_method),
    *(script_layers, trace_layers),
]


@pytest.fixture(params=CHANGES, ids=lambda change: change.__name__)
def changed(request: pytest.FixtureRequest) -> GRPO:
    model = build_plain()
    model.learn(64)  # with moments of the layers before
    request.param(model.policy)
    return model


def test_changed_layers_act_and_learn_as_they_are(changed: GRPO) -> None:
    before = {name: p.detach().clone() for name, p in changed.policy.named_parameters()}
    assert abs(measure_first_kl(changed)) < 1e-5
    same = [name for name, p in changed.policy.named_parameters() if torch.equal(p, before[name])]
    assert not same, "every layer that the policy has now is trained"
    trained = {id(p) for group in changed.policy.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in changed.policy.parameters()}


def test_a_replaced_method_of_the_distribution_is_heeded() -> None:
    model, shown = build_plain(), np.full((1, 4), 0.5, np.float32)
    distribution: Any = model.policy.action_dist
    own, preferring = distribution.proba_distribution, torch.tensor([3.0, 0.0], device=DEVICE)
    distribution.proba_distribution = lambda action_logits: own(action_logits + preferring)
    probs: Any = model.make_actor().action_probs(shown)
    assert probs[0, 0] > 0.9
    assert abs(measure_first_kl(model)) < 1e-6


def test_a_policy_that_squashes_from_now_on_acts_as_it_predicts() -> None:
    model = build(gym.make("Pendulum-v1"), n_steps=64, horizon=16)
    drawn = np.array([[0.5]], np.float32)
    assert model._make_rollout_actor().clip_actions(drawn) == [[0.5]]
    model.policy._squash_output = True
    assert model._make_rollout_actor().clip_actions(drawn) == [[1.0]]  # within -2 to 2


def test_changed_layers_come_back_into_layers_changed_alike() -> None:
    model = build_plain()
    replace_hidden_layers(model.policy)
    model.learn(64)
    with pytest.raises(ValueError, match=r"change its layers as before, and call model\.set_parameters\(path\)"):
        reload(model)
    other = build_plain(seed=1)
    replace_hidden_layers(other.policy)
    with pytest.raises(ValueError, match=r"the weights of the file are not those of this policy.*in the policy; build"):
        build_plain().set_parameters(io.BytesIO(model.to_bytes()))  # type: ignore[arg-type]
    other.set_parameters(io.BytesIO(model.to_bytes()))  # type: ignore[arg-type]
    assert is_same(copy_weights(model), copy_weights(other))


def read_moments(model: GRPO) -> dict[str, dict[str, torch.Tensor]]:
    """Return the moments of the policy's parameters by their names."""
    state = model.policy.optimizer.state
    return {name: {**state[p]} for name, p in model.policy.named_parameters() if p in state}


def has_same_moments(first: GRPO, second: GRPO) -> bool:
    ours, theirs = read_moments(first), read_moments(second)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name][key], theirs[name][key]) for name in ours for key in ours[name]
    )


@pytest.mark.parametrize("change", [replace_head, replace_hidden_layers, append_a_layer, tie_weights, freeze])
def test_moments_come_back_to_the_parameters_that_they_are_of(change: Any, tmp_path: Path) -> None:
    def make() -> GRPO:
        model = build_plain()
        torch.manual_seed(7)
        change(model.policy)
        return model

    path, model = tmp_path / "training.zip", make()
    model.learn(256, KeepCheckpoint(path, every_steps=100))
    by_file, by_dict = make(), make()
    by_file.set_parameters(io.BytesIO(model.to_bytes()))  # type: ignore[arg-type]
    by_dict.set_parameters(copy.deepcopy(model.get_parameters()))  # type: ignore[arg-type]
    for other in (by_file, by_dict):
        other._parameter_groups.follow(other.policy)  # as the next update does
        assert has_same_moments(model, other)
        other.learn(64, reset_num_timesteps=False)
    resumed = make()
    n_left = resume_training(resumed, path)  # warnings are errors
    assert 0 < n_left < 256
    resumed.learn(n_left, reset_num_timesteps=False)
    assert is_same(copy_weights(model), copy_weights(resumed))
    assert has_same_moments(model, resumed)


@pytest.mark.parametrize("policy", ["MlpPolicy", TowerPolicy])
def test_moments_come_back_though_other_parameters_are_frozen(policy: Any) -> None:
    model = build_plain(policy=policy, policy_kwargs={})
    freeze(model.policy)
    model.learn(64)
    loaded = reload(model, env=gym.make("CartPole-v1"), **({} if policy == "MlpPolicy" else {"policy": policy}))
    assert has_same_moments(model, loaded)
    loaded.learn(64, reset_num_timesteps=False)


def test_a_file_of_before_moments_had_names_is_loaded_with_a_warning_if_they_fit_no_parameters() -> None:
    def read_older(model: GRPO) -> Any:
        read = model_file.from_bytes(model.to_bytes(), with_optimizer=True, with_own_parts=True)
        meta = {name: value for name, value in read.meta.items() if name != "optimizer"}
        return io.BytesIO(model_file.to_bytes(meta, read.weights, read.optimizer))

    model, other = (build_plain(policy=TowerPolicy, policy_kwargs={}) for _ in range(2))
    other.set_parameters(read_older(model.learn(64)))
    assert has_same_moments(model, other)
    freeze(model.policy)
    with pytest.warns(UserWarning, match="moments in the file are of other weights than the optimizer trains here"):
        other.set_parameters(read_older(model.learn(64)))
    assert not read_moments(other)
    other.learn(64)


def test_frozen_parameters_stay_as_they_are_and_others_learn() -> None:
    model = build_plain()
    model.policy.mlp_extractor.requires_grad_(False)
    before = copy_weights(model)
    model.learn(64)
    after = copy_weights(model)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) == name.startswith("mlp_extractor"), name


def test_a_compiled_policy_is_the_policy() -> None:
    model, plain = build_plain(), build_plain()
    model.policy = torch.compile(model.policy, backend="eager")  # type: ignore[assignment]
    for one in (model, plain):
        one.learn(64)
    loaded = reload(model)
    assert is_same(copy_weights(plain), copy_weights(loaded))
    model.predict(np.zeros(4, np.float32))


def test_compiled_layers_are_those_layers() -> None:
    model = build_plain()
    hidden: Any = model.policy.mlp_extractor
    hidden.policy_net = torch.compile(hidden.policy_net, backend="eager")
    assert abs(measure_first_kl(model)) < 1e-6
    other = build_plain(seed=1)
    model.set_parameters(io.BytesIO(other.to_bytes()))  # type: ignore[arg-type]
    assert is_same(copy_weights(other), copy_weights(reload(model)))
    shown = np.zeros((1, 4), np.float32)
    np.testing.assert_array_equal(
        reload(model).predict(shown, deterministic=True)[0], model.predict(shown, deterministic=True)[0]
    )


def test_a_policy_with_state_dependent_exploration_is_refused() -> None:
    class Exploring(ActorCriticPolicy):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "use_sde": True})

    with pytest.raises(ValueError, match=r"use_sde=True is not allowed: .* build Exploring without it"):
        build(MatchEnv(action_space=ACTION_SPACES["box"]), policy=Exploring, policy_kwargs={})


def test_a_reference_policy_of_an_own_policy_is_a_copy() -> None:
    model = build(policy_kwargs=OWN_KWARGS, kl_coef=0.5)
    model.learn(32)
    assert model.logger.name_to_value["train/kl_ref"] > 0.0
