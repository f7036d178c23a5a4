"""``GRPO.train`` with gradients derived by hand against torch's: the same steps, to the rounding of 32-bit floats."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import configure_logger

from grpo import GRPO
from grpo_core.fast.learner import MlpLearner, UpdateRule, _FlatParameters, is_plain_mlp
from grpo_core.groups.rollout import Indices, StepBatch
from grpo_core.update.policies import evaluate_actions, split_parameters
from tests.environments import SpaceEnv
from tests.models import PlainGRPO, with_either_path

PLACE = spaces.Box(-1.0, 1.0, (5,))
CHOICE = spaces.Discrete(3)
FORCE = spaces.Box(-1.0, 1.0, (2,))
N_STEPS = 96
LEARNING_RATE = 1e-3
RULE = UpdateRule(
    clip_range=0.2,
    clip_range_high=0.2,
    ent_coef=0.0,
    vf_coef=0.5,
    kl_coef=0.0,
    max_grad_norm=0.5,
    target_kl=None,
    loss_type="clip",
)


class Scripted(GRPO):
    """Trains on minibatches that a test has written down, and keeps what took the steps."""

    minibatches: Sequence[Indices] = ()
    learner: MlpLearner | None = None

    def _draw_minibatches(self) -> Iterator[Indices]:
        yield from self.minibatches

    def _make_fast_learner(self, *clip_ranges: float) -> MlpLearner | None:
        self.learner = super()._make_fast_learner(*clip_ranges)
        return self.learner


class ScriptedPlain(Scripted):
    """The same with the loop that ``grpo.py`` shows."""

    use_fast_path = False


def build(
    observation_space: spaces.Space[Any] = PLACE,
    action_space: spaces.Space[Any] = CHOICE,
    algorithm: type[GRPO] = GRPO,
    policy: str = "MlpPolicy",
    arguments: dict[str, Any] | None = None,
    **policy_kwargs: Any,
) -> GRPO:
    """Build an untrained model; those of one seed have the same weights."""
    env = SpaceEnv(observation_space, action_space)
    # Nothing is to be proven of an environment in whose place steps are drawn.
    fixed: dict[str, Any] = {"seed": 0, "learning_rate": LEARNING_RATE, "n_steps": 64, "group_mode": "episode"}
    # The outputs begin almost at zero in SB3; here they shall matter.
    policy_kwargs = {"ortho_init": False, **policy_kwargs}
    return algorithm(policy, env, policy_kwargs=policy_kwargs, **fixed, **(arguments or {}))


def build_two(action_space: spaces.Space[Any] = CHOICE, **build_arguments: Any) -> tuple[ScriptedPlain, Scripted]:
    """Build the same model twice: one that torch trains, and one that is trained by hand."""
    by_torch = build(action_space=action_space, algorithm=ScriptedPlain, **build_arguments)
    by_hand = build(action_space=action_space, algorithm=Scripted, **build_arguments)
    assert isinstance(by_torch, ScriptedPlain)
    assert isinstance(by_hand, Scripted)
    return by_torch, by_hand


def train(model: Scripted, batch: StepBatch, minibatches: Sequence[Indices]) -> dict[str, float]:
    """Take one step per minibatch, and return what is logged of them."""
    model._batch, model._actor, model.minibatches = batch, model.make_actor(), minibatches
    model.set_logger(configure_logger())
    model.train()
    assert (model.learner is None) == isinstance(model, ScriptedPlain)
    logged = {name.removeprefix("train/"): value for name, value in model.logger.name_to_value.items()}
    return {name: value for name, value in logged.items() if name not in ("learning_rate", "n_updates", "clip_range")}


def draw_batch(model: GRPO, has_reference: bool = False) -> StepBatch:
    """Draw steps with ratios from about 0.1 to 10, and advantages of both signs."""
    rng = np.random.default_rng(0)
    for space in (model.observation_space, model.action_space):
        space.seed(0)
    observations = np.stack([model.observation_space.sample() for _ in range(N_STEPS)])
    actions = np.stack([model.action_space.sample() for _ in range(N_STEPS)])
    inputs = torch.from_numpy(observations), torch.from_numpy(actions)
    with torch.no_grad():
        log_prob = evaluate_actions(model.policy, *inputs, None)[1].numpy()

    def draw(spread: float) -> npt.NDArray[np.float32]:
        return rng.normal(0.0, spread, N_STEPS).astype(np.float32)

    noise, advantages, value_targets = draw(0.8), draw(1.0), draw(3.0)
    weights = rng.uniform(0.2, 2.0, N_STEPS).astype(np.float32)
    batch = StepBatch(
        observations,
        actions,
        old_log_prob=log_prob + noise,
        advantages=advantages,
        value_targets=value_targets,
        branch_index=np.zeros(N_STEPS, np.int64),
        weights=weights,
        unfiltered_weights=weights,
    )
    return batch._replace(ref_log_prob=log_prob + draw(0.3)) if has_reference else batch


def draw_indices(n_updates: int, batch_size: int = 32) -> list[Indices]:
    rng = np.random.default_rng(1)
    return [rng.permutation(N_STEPS)[:batch_size] for _ in range(n_updates)]


def assert_same_gradients(models: tuple[Scripted, Scripted], tolerance: float = 2e-6) -> None:
    """Compare what the two optimizers were given last.

    :param tolerance: Largest difference, in multiples of the group's largest derivative. A float's rounding is 6e-8 of
        it; sums of up to 96 products that partly cancel have some ten times that.
    """
    for pair in zip(*(split_parameters(model.policy) for model in models), strict=True):
        parameters = list(zip(*pair, strict=True))
        largest = max(float(one.grad.abs().max()) for one, _ in parameters if one.grad is not None)
        for by_torch, by_hand in parameters:
            assert by_torch.grad is not None
            assert models[1].learner is not None
            gradient = models[1].learner._flat.parts[by_hand].gradient
            np.testing.assert_allclose(gradient, by_torch.grad.numpy(), rtol=0, atol=tolerance * largest)


def iterate_states(models: tuple[GRPO, GRPO]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield each parameter's name and, for either model, its value and Adam's state."""
    named = [list(model.policy.named_parameters()) for model in models]
    for (name, one), (_, other) in zip(*named, strict=True):
        first, second = (
            {"value": p.detach(), **model.policy.optimizer.state.get(p, {})}
            for model, p in zip(models, (one, other), strict=True)
        )
        yield name, first, second


def assert_same_training(models: tuple[Scripted, Scripted], batch: StepBatch, minibatches: Sequence[Indices]) -> None:
    """Train both, and compare parameters, moments, and what is logged."""
    expected, logged = (train(model, batch, minibatches) for model in models)
    assert list(logged) == list(expected)
    # Means over the updates of numbers whose terms partly cancel.
    assert logged == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for name, by_torch, by_hand in iterate_states(models):
        assert by_hand.keys() == by_torch.keys()
        for key, tensor in by_torch.items():
            assert (by_hand[key].dtype, by_hand[key].shape) == (tensor.dtype, tensor.shape)
            # Adam divides a derivative by its own size, and the rounding of a small one with it: a hundredth of a step.
            atol = LEARNING_RATE / 100 if key == "value" else 5e-6 * float(tensor.abs().max())
            np.testing.assert_allclose(by_hand[key], tensor, rtol=0, atol=atol, err_msg=f"{name}: {key}")


def is_same(models: tuple[GRPO, GRPO]) -> bool:
    """Tell whether two models have the same parameters and optimizer state, bit by bit."""
    return all(
        one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        for _, one, other in iterate_states(models)
    )


NETWORKS: list[tuple[spaces.Space[Any], dict[str, Any]]] = [
    (PLACE, {}),
    (PLACE, {"net_arch": []}),
    (PLACE, {"net_arch": {"pi": [8], "vf": [16, 4]}}),
    (PLACE, {"net_arch": [16], "activation_fn": torch.nn.ReLU}),
    (PLACE, {"net_arch": [16, 8], "activation_fn": torch.nn.ELU}),
    (PLACE, {"net_arch": [16, 8], "activation_fn": torch.nn.LeakyReLU}),
    (PLACE, {"net_arch": [8], "share_features_extractor": False}),
    (PLACE, {"net_arch": [8], "optimizer_kwargs": {"betas": (0.7, 0.9), "eps": 1e-3}}),
    (PLACE, {"net_arch": [8], "log_std_init": -1.0}),
    (spaces.Box(-1.0, 1.0, (2, 3), np.float64), {"net_arch": [8]}),
    (spaces.Discrete(7), {"net_arch": [8]}),
    (spaces.MultiBinary(4), {"net_arch": [8]}),
    (spaces.MultiDiscrete([3, 2]), {"net_arch": [8]}),
]
RULES: list[dict[str, Any]] = [
    {},
    {"clip_range": 0.05, "clip_range_high": 0.4},
    {"loss_type": "cispo"},
    {"loss_type": "cispo", "clip_range_high": 1.5, "ent_coef": 0.1},
    {"ent_coef": 0.3},
    {"kl_coef": 0.7},
    {"kl_coef": 0.7, "loss_type": "cispo", "ent_coef": 0.1, "clip_range_high": 0.3},
    {"vf_coef": 0.0},
    {"vf_coef": 20.0},
    {"max_grad_norm": 0.0},
    {"max_grad_norm": 1e-3},
    {"max_grad_norm": 1e6},
    # As a number of NumPy's, which would make float64 of every array that it is multiplied by.
    {"ent_coef": np.float64(0.3), "vf_coef": np.float64(0.5), "kl_coef": np.float64(0.1)},
]
with_either_action = pytest.mark.parametrize("action_space", [CHOICE, FORCE], ids=["Discrete", "Box"])


@with_either_action
@pytest.mark.parametrize(("observation_space", "network"), NETWORKS, ids=str)
def test_every_network_takes_the_same_steps(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any], network: dict[str, Any]
) -> None:
    arguments = {"ent_coef": 0.1, "kl_coef": 0.2}
    models = build_two(action_space, observation_space=observation_space, arguments=arguments, **network)
    assert_same_steps(models, draw_batch(models[0], has_reference=True))


@with_either_action
@pytest.mark.parametrize("changes", RULES, ids=str)
def test_every_rule_takes_the_same_steps(action_space: spaces.Space[Any], changes: dict[str, Any]) -> None:
    models = build_two(action_space, arguments=changes, net_arch=[8])
    assert_same_steps(models, draw_batch(models[0], has_reference="kl_coef" in changes))


def assert_same_steps(models: tuple[Scripted, Scripted], batch: StepBatch) -> None:
    first, *others = draw_indices(20)
    assert_same_training(models, batch, [first])
    assert_same_gradients(models)
    assert_same_training(models, batch, others)


def test_the_steps_compared_leave_the_interval_on_both_sides_with_advantages_of_both_signs() -> None:
    model = build(net_arch=[8])
    batch = draw_batch(model)
    tensors = batch.to_tensors(model.device)
    with torch.no_grad():
        _, log_prob, _ = evaluate_actions(model.policy, tensors.observations, tensors.actions, None)
    ratio, good = np.exp(log_prob.numpy() - batch.old_log_prob), batch.advantages > 0
    for is_outside in (ratio < 0.6, ratio > 1.6):
        assert (is_outside & good).sum() > 3
        assert (is_outside & ~good).sum() > 3


@with_either_action
@pytest.mark.parametrize("loss_type", ["clip", "cispo"])
@pytest.mark.parametrize("log_ratio", [-5.0, -0.5, 0.5, 5.0])
@pytest.mark.parametrize("advantage", [-1.5, 0.0, 1.5])
def test_a_single_step_has_the_same_gradient(
    action_space: spaces.Space[Any], loss_type: Any, log_ratio: float, advantage: float
) -> None:
    arguments = {"loss_type": loss_type, "max_grad_norm": 1e6}
    models = build_two(action_space, arguments=arguments, net_arch=[4])
    batch = draw_batch(models[0])
    tensors = batch.to_tensors(models[0].device)
    with torch.no_grad():
        _, log_prob, _ = evaluate_actions(models[0].policy, tensors.observations, tensors.actions, None)
    advantages = np.full(N_STEPS, advantage, np.float32)
    batch = batch._replace(old_log_prob=log_prob.numpy() - np.float32(log_ratio), advantages=advantages)
    for model in models:
        train(model, batch, [np.array([7])])
    assert_same_gradients(models, tolerance=5e-6)  # of a ratio of e^5, which carries its log's rounding
    assert models[1].learner is not None
    # Only the clipped surrogate lets go of a step, and only where its advantage asked for the way that it went.
    gradients = [models[1].learner._flat.parts[p].gradient for p in split_parameters(models[1].policy)[0]]
    is_let_go = advantage == 0.0 or (loss_type == "clip" and log_ratio * advantage > 0)
    assert any(gradient.any() for gradient in gradients) != is_let_go


@with_either_action
def test_minibatches_may_have_any_size(action_space: spaces.Space[Any]) -> None:
    models = build_two(action_space, net_arch=[8])
    batch = draw_batch(models[0])
    for batch_size in (1, N_STEPS, 2, 31, 1, 64):
        assert_same_training(models, batch, draw_indices(1, batch_size))
        assert_same_gradients(models, tolerance=1e-4)  # the steps before it were rounded, too


@with_either_action
def test_the_gradient_is_the_slope_of_the_loss(action_space: spaces.Space[Any]) -> None:
    model = build(action_space=action_space, net_arch=[4])
    batch = draw_batch(model, has_reference=True)
    rule = RULE._replace(ent_coef=0.1, kl_coef=0.3, max_grad_norm=1e6)
    everything = np.arange(N_STEPS)

    def compute_loss() -> float:
        # So small a target_kl lets no step be taken.
        learner = MlpLearner(model.policy, model.make_numpy_actor(), batch, rule._replace(target_kl=1e-9))
        return learner.train([everything])["loss"]

    twin = build(action_space=action_space, net_arch=[4])  # so that the step leaves the model as it is
    learner = MlpLearner(twin.policy, twin.make_numpy_actor(), batch, rule)
    learner.train([everything])
    for (name, parameter), of_twin in zip(model.policy.named_parameters(), twin.policy.parameters(), strict=True):
        gradient = learner._flat.parts[of_twin].gradient.ravel()
        i, numbers, width = int(np.abs(gradient).argmax()), parameter.detach().view(-1), 4e-3
        middle, losses = float(numbers[i]), []
        for shift in (-width / 2, width / 2):
            numbers[i] = middle + shift
            losses.append(compute_loss())
        numbers[i] = middle
        # A loss of about 6 is rounded to 5e-7, and ratios that pass a bound of the interval bend it.
        assert (losses[1] - losses[0]) / width == pytest.approx(gradient[i], rel=0.02, abs=1e-3), name


@pytest.mark.parametrize("optimizer_kwargs", [{}, {"betas": (0.5, 0.6), "eps": 0.1}, {"betas": (0.0, 0.0)}])
def test_given_the_same_gradients_the_optimizer_takes_adams_steps(optimizer_kwargs: dict[str, Any]) -> None:
    models = tuple(build(net_arch=[4], optimizer_kwargs={"eps": 1e-5, **optimizer_kwargs}) for _ in range(2))
    by_torch, by_hand = models[0].policy, models[1].policy
    for policy in (by_torch, by_hand):
        policy.optimizer.param_groups[1]["lr"] = 0.02
    flat, rng = _FlatParameters(by_hand.optimizer), np.random.default_rng(0)
    for i in range(30):
        for p, q in zip(by_torch.parameters(), by_hand.parameters(), strict=True):
            gradient = rng.normal(0.0, 10.0 ** -(i % 4), p.shape).astype(np.float32)
            p.grad = torch.from_numpy(gradient)
            flat.parts[q].gradient[...] = gradient
        by_torch.optimizer.step()
        flat.step()
    flat.write_back()
    # Thirty steps of 0.02 at most, each rounded to 1e-7 of itself, onto numbers around 1, rounded to 6e-8.
    for name, expected, state in iterate_states((models[0], models[1])):
        assert state["step"] == expected["step"] == 30
        for key, tensor in expected.items():
            np.testing.assert_allclose(state[key], tensor, rtol=2e-6, atol=1e-6, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("loss_type", ["clip", "cispo"])
@pytest.mark.parametrize("weight", [1.0, 0.16])  # 0.16: branches of 20 steps where the horizon is 128
@pytest.mark.parametrize("is_filtered", [False, True])
def test_how_far_the_policy_moved_depends_neither_on_the_size_of_the_weights_nor_on_the_filter(
    is_filtered: bool, weight: float, loss_type: str
) -> None:
    models = build_two(net_arch=[4], arguments={"loss_type": loss_type, "target_kl": 1e-9, "kl_coef": 0.3})
    weights = np.full(N_STEPS, weight, np.float32)
    batch = draw_batch(models[0], has_reference=True)
    batch = batch._replace(weights=weights * (not is_filtered), unfiltered_weights=weights)
    tensors = batch.to_tensors(models[0].device)
    with torch.no_grad():
        _, log_prob, _ = evaluate_actions(models[0].policy, tensors.observations, tensors.actions, None)
    ratio = np.exp(log_prob.numpy() - batch.old_log_prob)
    is_outside = (ratio > 1.2) | ((ratio < 0.8) & (loss_type == "clip"))
    log_ref = batch.ref_log_prob - log_prob.numpy()
    kl_ref = float((np.exp(log_ref) - 1.0 - log_ref).mean())
    expected = float((ratio - 1.0 - np.log(ratio)).mean()), float(is_outside.mean()), kl_ref
    assert min(expected) > 0.03
    for model in models:
        logged = train(model, batch, [np.arange(N_STEPS)])
        assert [logged[name] for name in ("approx_kl", "clip_fraction", "kl_ref")] == pytest.approx(expected, rel=1e-5)
        # In the loss the penalty is weighed as the surrogate is.
        rest = logged["policy_gradient_loss"] + 0.5 * logged["value_loss"]
        assert logged["loss"] - rest == pytest.approx(0.3 * batch.weights.mean() * kl_ref, abs=2e-6)


@with_either_action
@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
def test_momentum_does_not_move_the_policy_where_all_groups_are_filtered_out(
    action_space: spaces.Space[Any], ent_coef: float
) -> None:
    models = build_two(action_space, arguments={"ent_coef": ent_coef, "kl_coef": 0.2}, net_arch=[4])
    batch, minibatches = draw_batch(models[0], has_reference=True), draw_indices(3)
    filtered_out = batch._replace(weights=np.zeros_like(batch.weights))
    assert_same_training(models, filtered_out, minibatches)  # and without a first step
    assert_same_training(models, batch, minibatches)
    parts = [split_parameters(model.policy) for model in models]
    before = [[[p.detach().clone() for p in part] for part in of_model] for of_model in parts]
    assert_same_training(models, filtered_out, minibatches)
    for now, then in zip(parts, before, strict=True):
        policy, values = (list(map(torch.equal, *pair)) for pair in zip(now, then, strict=True))
        assert all(policy) == (ent_coef == 0.0)
        assert not any(values)
    assert_same_training(models, batch, minibatches)


@with_either_action
def test_target_kl_forbids_the_step(action_space: spaces.Space[Any]) -> None:
    models = build_two(action_space, arguments={"target_kl": 1e-3}, net_arch=[4])
    untouched, batch = build(action_space=action_space, net_arch=[4]), draw_batch(models[0])
    expected, logged = (train(model, batch, draw_indices(2)) for model in models)
    assert logged == pytest.approx(expected, rel=1e-5)
    assert logged["approx_kl"] > 1.5e-3
    assert is_same((untouched, models[0]))
    assert is_same((untouched, models[1]))


def test_without_a_minibatch_nothing_is_logged_and_nothing_changes() -> None:
    models = build_two(net_arch=[4])
    for model in models:
        assert train(model, draw_batch(model), []) == {}
    assert is_same((build(net_arch=[4]), models[0]))
    assert is_same(models)


@with_either_action
def test_training_goes_on_bit_by_bit_with_a_new_learner_and_with_a_loaded_model(
    action_space: spaces.Space[Any], tmp_path: Any
) -> None:
    minibatches = draw_indices(8)
    at_once, in_parts = (build(action_space=action_space, net_arch=[8]) for _ in range(2))
    batch = draw_batch(at_once)

    def train(model: GRPO, indices: list[Indices]) -> None:
        MlpLearner(model.policy, model.make_numpy_actor(), batch, RULE).train(indices)

    train(at_once, minibatches)
    train(in_parts, minibatches[:5])
    in_parts.save(tmp_path / "model")
    loaded = GRPO.load(tmp_path / "model")
    for model in (in_parts, loaded):
        train(model, minibatches[5:])
        assert is_same((at_once, model))


@with_either_action
def test_either_learner_goes_on_where_the_other_left_off(action_space: spaces.Space[Any]) -> None:
    models = build_two(action_space, net_arch=[8])
    batch, minibatches = draw_batch(models[0]), draw_indices(5)
    assert_same_training(models, batch, minibatches)
    for model in models:  # and now the other way round
        model.__class__ = Scripted if isinstance(model, ScriptedPlain) else ScriptedPlain
        model.learner, model._uses_fast_path = None, model.use_fast_path
    assert_same_training((models[1], models[0]), batch, minibatches)
    assert {float(state["step"]) for _, state, _ in iterate_states(models)} == {10.0}


def freeze(model: GRPO) -> None:
    model.policy.value_net.bias.requires_grad_(False)


def freeze_for_a_rollout(model: GRPO) -> None:
    freeze(model)
    model.learn(1, reset_num_timesteps=False)
    model.policy.value_net.bias.requires_grad_(True)


def renew_optimizer(model: GRPO) -> None:
    model.policy.optimizer = torch.optim.Adam([{"params": group} for group in split_parameters(model.policy)], lr=0.01)


def replace_optimizer(model: GRPO) -> None:
    groups = [{"params": group} for group in split_parameters(model.policy)]
    model.policy.optimizer = torch.optim.SGD(groups, lr=0.01)


def set_option(name: str, value: Any) -> Callable[[GRPO], None]:
    def change(model: GRPO) -> None:
        model.policy.optimizer.param_groups[1][name] = value

    return change


def borrow(what: str) -> Callable[[GRPO], None]:
    """Take over what another, trained model has."""

    def change(model: GRPO) -> None:
        other = build(net_arch=[8]).learn(64)
        if what == "parameters":
            parameters: Any = other.get_parameters()
            model.set_parameters(parameters)
        elif what == "weights":
            model.policy.load_state_dict(other.policy.state_dict())
        else:
            model.policy.optimizer.load_state_dict(other.policy.optimizer.state_dict())

    return change


CHANGES: dict[str, tuple[Callable[[GRPO], Any], bool]] = {
    "nothing": (lambda model: None, True),
    "all parameters": (borrow("parameters"), True),
    "the policy's weights": (borrow("weights"), True),
    "the optimizer's state": (borrow("optimizer"), True),
    "another Adam": (renew_optimizer, True),
    "the device": (lambda model: model.policy.to("cpu"), True),
    "another optimizer": (replace_optimizer, False),
    "a frozen parameter": (freeze, False),
    "a parameter frozen for a rollout": (freeze_for_a_rollout, False),
    "weight decay": (set_option("weight_decay", 0.1), False),
    "other betas for the value network": (set_option("betas", (0.5, 0.9)), False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_user_changed_between_rollouts_is_honoured(what: str) -> None:
    change, stays_plain = CHANGES[what]
    models = build(net_arch=[8], algorithm=PlainGRPO), build(net_arch=[8])
    for model in models:
        model.learn(64)
        change(model)
    assert is_plain_mlp(models[1].policy) == stays_plain
    before = models[1].policy.value_net.bias.item()
    for model in models:
        model.learn(64, reset_num_timesteps=False)
    for name, by_torch, by_hand in iterate_states(models):
        # Some eighty steps of either size, 1e-3 and 1e-2.
        np.testing.assert_allclose(by_hand["value"], by_torch["value"], rtol=0, atol=5e-5, err_msg=name)
    assert (models[1].policy.value_net.bias.item() == before) == (what == "a frozen parameter")


IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)


@pytest.mark.parametrize(
    ("is_plain", "arguments"),
    [
        (True, {}),
        (True, {"action_space": FORCE}),
        (True, {"share_features_extractor": False}),
        (True, {"net_arch": []}),
        (True, {"optimizer_kwargs": {"betas": (0.5, 0.6), "eps": 1e-3}}),
        (True, {"observation_space": spaces.Dict({"a": PLACE, "b": CHOICE}), "policy": "MultiInputPolicy"}),
        (True, {"observation_space": IMAGE}),  # flattened by MlpPolicy
        (False, {"observation_space": IMAGE, "policy": "CnnPolicy"}),
        (False, {"observation_space": IMAGE, "policy": "CnnPolicy", "share_features_extractor": False}),
        (False, {"observation_space": spaces.Dict({"a": PLACE, "b": IMAGE}), "policy": "MultiInputPolicy"}),
        (False, {"action_space": spaces.MultiDiscrete([3, 2])}),
        (False, {"action_space": spaces.MultiBinary(2)}),
        (False, {"optimizer_class": torch.optim.AdamW}),
        (False, {"optimizer_class": torch.optim.SGD}),
        (False, {"optimizer_kwargs": {"weight_decay": 0.1}}),
        (False, {"optimizer_kwargs": {"amsgrad": True}}),
        (False, {"optimizer_kwargs": {"maximize": True}}),
    ],
    ids=str,
)
def test_plain_policies_are_told_from_others(is_plain: bool, arguments: dict[str, Any]) -> None:
    model = build(**arguments)
    assert is_plain_mlp(model.policy) == is_plain
    model.learn(1)
    assert is_plain_mlp(model.policy) == is_plain, "nor does a rollout change that"
    assert (model._make_fast_learner(0.2, 0.2) is not None) == is_plain


def test_a_policy_of_other_numbers_is_not_plain() -> None:
    assert not is_plain_mlp(build().policy.to(torch.float64))
    assert not is_plain_mlp(build().policy.to("meta"))


@pytest.mark.parametrize(
    ("env", "changes"),
    [
        ("CartPole-v1", {"importance_level": "branch"}),
        (SpaceEnv(PLACE, spaces.Discrete(3), masks=[1, 0, 1]), {}),
    ],
    ids=["branch", "masks"],
)
def test_what_is_not_derived_by_hand_is_left_to_torch(env: Any, changes: dict[str, Any]) -> None:
    model = GRPO("MlpPolicy", env, n_steps=32, horizon=8, seed=0, **changes)
    model.learn(1)
    assert model._make_fast_learner(0.2, 0.2) is None


@with_either_path
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_loss_that_is_not_finite_is_refused(algorithm: type[GRPO], env_id: str, is_lost: bool) -> None:
    cause: dict[str, Any] = {"reward_function": lambda state, action, after: torch.full((len(state), 1), 1e30)}
    if is_lost:
        cause = {"learning_rate": 1e30}
    arguments: dict[str, Any] = {"n_steps": 32, "horizon": 8, "batch_size": 8, "n_epochs": 2, "seed": 0}
    model = algorithm("MlpPolicy", gym.make(env_id), **arguments, **cause)
    # torch looks at a Gaussian's parameters before the loss is known.
    with pytest.raises(ValueError, match=r"the loss is not finite .*lower learning_rate or|Expected parameter scale"):
        model.learn(64)
    # All are those after the last step; a gradient of infinite norm is shortened to nothing.
    assert len({float(state["step"]) for state in model.policy.optimizer.state.values()}) == 1
    assert is_lost or all(p.isfinite().all() for p in model.policy.parameters())
