"""Models come back from their file as they were, for every space and policy, and go on learning the same way."""

import copy
import io
import json
import subprocess
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core.saving import model_file
from grpo_core.saving.model_file import ModelFileError
from tests.sb3 import small_models
from tests.sb3.environments import ACTION_SPACES, OBSERVATION_SPACES, MatchEnv
from tests.sb3.small_models import MODES, POLICY_OF, build, build_over, sample_observations
from tests.suites import DEVICE
from tests.weights import copy_weights, is_same

ROOT = Path(__file__).parent.parent.parent
OTHER_OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "another shape": spaces.Box(-1.0, 1.0, (4,), np.float32),
    "other bounds": spaces.Box(-2.0, 1.0, (3,), np.float32),
    "another kind": spaces.Discrete(3),
}
OTHER_ACTIONS: dict[str, spaces.Space[Any]] = {
    "more choices": spaces.Discrete(4),
    "another kind": spaces.MultiDiscrete([3]),
}


def reload(model: GRPO, **arguments: Any) -> GRPO:
    return GRPO.load(io.BytesIO(model.to_bytes()), device=DEVICE, **arguments)


def test_a_model_that_no_file_will_hold_is_told_of_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two layers of 3 * 64 and 64 * 64 weights and 2 * 64 biases in two networks, 3 * 64 + 3 and 64 + 1 more, 4 bytes
    # each and two moments, are 109,104.
    kwargs = {"net_arch": [64, 64]}
    for array_bytes, is_told in ((109_104, False), (109_103, True)):
        limits = model_file.Limits(array_bytes + 2048, 1024, 1)
        monkeypatch.setattr("grpo_core.saving.model_state.LIBRARY_LIMITS", limits)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            build(policy_kwargs=kwargs)
        assert [one.filename for one in caught] == [small_models.__file__] * is_told
        assert all("save() may fail after the first update" in str(one.message) for one in caught)


def pay_twice(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return torch.full((len(state), 1), 2.0)


class Quads(GRPO):
    """Chooses some arguments itself."""

    def __init__(self, policy: Any, env: Any, **arguments: Any) -> None:
        super().__init__(policy, env, group_size=4, stats_window_size=7, reward_function=pay_twice, **arguments)
        self.note = "of its own"


def test_a_subclass_that_fixes_arguments_comes_back() -> None:
    model = Quads("MlpPolicy", MatchEnv(), n_steps=16, horizon=4, n_epochs=2, seed=3, device=DEVICE)
    model.learn(16)
    loaded = Quads.load(io.BytesIO(model.to_bytes()), env=MatchEnv(), device=DEVICE, gamma=0.5)
    assert (loaded.group_size, loaded._stats_window_size, loaded.note) == (4, 7, "of its own")
    assert (loaded.n_steps, loaded.n_epochs, loaded.seed, loaded.gamma) == (16, 2, 3, 0.5)
    assert is_same(copy_weights(model), copy_weights(loaded))
    assert loaded.reward_function is pay_twice
    loaded.learn(16)


def test_a_model_that_no_server_takes_is_saved_and_loaded(tmp_path: Path) -> None:
    wide = {"pi": [8192, 4096], "vf": [1]}  # 128 MiB of weights between two layers
    model = build(policy_kwargs={"net_arch": wide, "ortho_init": False})
    model.save(tmp_path / "wide")
    loaded = GRPO.load(tmp_path / "wide", device=DEVICE)
    assert is_same(copy_weights(model), copy_weights(loaded))


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_predictions_are_the_same_after_loading(observation: str, action: str, tmp_path: Path) -> None:
    model = build_over(observation, action)
    model.learn(16)
    observations = sample_observations(model, 8)
    before, _ = model.predict(observations, deterministic=True)
    model.save(tmp_path / "model")
    loaded = GRPO.load(tmp_path / "model.zip", device=DEVICE)
    assert is_same(copy_weights(model), copy_weights(loaded))
    np.testing.assert_array_equal(before, loaded.predict(observations, deterministic=True)[0])
    assert loaded.observation_space == model.observation_space
    assert loaded.action_space == model.action_space


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": []},
        {"net_arch": {"pi": [8], "vf": [4, 4]}, "activation_fn": torch.nn.ReLU},
        {"net_arch": [8], "share_features_extractor": False},
        {"net_arch": [8], "optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
        {"net_arch": [8], "optimizer_class": torch.optim.AdamW, "log_std_init": -1.0, "ortho_init": False},
    ],
    ids=str,
)
def test_policies_and_optimizers_of_every_make_come_back_whole(policy_kwargs: dict[str, Any]) -> None:
    model = build(MatchEnv(action_space=ACTION_SPACES["box"]), policy_kwargs=policy_kwargs)
    model.learn(16)
    loaded = reload(model)
    assert type(loaded.policy.optimizer) is type(model.policy.optimizer)
    assert is_same(copy_weights(model), copy_weights(loaded))
    moments, restored = (one.policy.optimizer.state_dict()["state"] for one in (model, loaded))
    assert moments.keys() == restored.keys()
    for index, state in moments.items():
        assert state.keys() == restored[index].keys()
        assert all(torch.equal(tensor, restored[index][name]) for name, tensor in state.items())


FRESH_PROCESS = """
import json, sys
import numpy as np
from grpo import GRPO
model = GRPO.load(sys.argv[1], device="cpu")
observations = {key: np.array(x["values"], x["dtype"]) for key, x in json.load(sys.stdin).items()}
print(json.dumps(model.predict(observations, deterministic=True)[0].tolist()))
"""


def test_a_fresh_process_predicts_the_same(python: str, tmp_path: Path) -> None:
    model = build_over("dict", "multi-discrete")
    model.learn(16)
    model.save(tmp_path / "model")
    observations = sample_observations(model, 4)
    spelt = {key: {"values": array.tolist(), "dtype": array.dtype.name} for key, array in observations.items()}
    answer = subprocess.run(
        [python, "-c", FRESH_PROCESS, str(tmp_path / "model")],
        input=json.dumps(spelt),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert json.loads(answer.stdout) == model.predict(observations, deterministic=True)[0].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_two_models_from_one_file_go_on_identically(mode: str) -> None:
    model = build(mode=mode)
    model.learn(24)
    first, second = (reload(model, env=MatchEnv()) for _ in range(2))
    for loaded in (first, second):
        assert loaded.num_timesteps == model.num_timesteps
        loaded.learn(24, reset_num_timesteps=False)
        assert loaded.num_timesteps >= model.num_timesteps + 24
    assert is_same(copy_weights(first), copy_weights(second))
    assert not is_same(copy_weights(first), copy_weights(model))


@pytest.mark.parametrize("name", ["image", "dict"])
def test_images_are_transposed_for_a_loaded_model_too(name: str) -> None:
    model = build_over(name, "discrete")
    loaded = reload(model, env=MatchEnv(OBSERVATION_SPACES[name]))
    loaded.learn(16)
    assert not is_same(copy_weights(model), copy_weights(loaded))


@pytest.mark.parametrize("name", OTHER_OBSERVATIONS)
def test_an_environment_with_other_observations_is_refused(name: str) -> None:
    env = MatchEnv(OTHER_OBSERVATIONS[name])
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        reload(build(), env=env)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        build().set_env(env)


@pytest.mark.parametrize("name", OTHER_ACTIONS)
def test_an_environment_with_other_actions_is_refused(name: str) -> None:
    env = MatchEnv(action_space=OTHER_ACTIONS[name])
    with pytest.raises(ValueError, match="Action spaces do not match"):
        reload(build(), env=env)
    with pytest.raises(ValueError, match="Action spaces do not match"):
        build().set_env(env)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_number_of_environments_may_change_on_load(mode: str, n_envs: int) -> None:
    model = build(make_vec_env(MatchEnv, 2), mode=mode)
    model.learn(24)
    loaded = reload(model, env=make_vec_env(MatchEnv, n_envs))
    assert loaded.n_envs == n_envs
    loaded.learn(24, reset_num_timesteps=False)
    assert loaded.rollout_buffer.step_mask.shape[1] % n_envs == 0
    assert not is_same(copy_weights(model), copy_weights(loaded))


def test_set_env_takes_the_same_number_of_environments_only() -> None:
    model = build(make_vec_env(MatchEnv, 2))
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_vec_env(MatchEnv, 3))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_first_environment_of_a_loaded_model_may_be_of_any_number(n_envs: int) -> None:
    loaded = reload(build(make_vec_env(MatchEnv, 2)))
    with pytest.raises(ValueError, match="spaces do not match"):
        loaded.set_env("CartPole-v1")
    assert loaded.n_envs == 2
    loaded.set_env(make_vec_env(MatchEnv, n_envs))
    assert loaded.n_envs == n_envs
    loaded.learn(24, reset_num_timesteps=False)


def test_set_env_before_the_first_training_and_between_two() -> None:
    model = reload(build())
    assert model.get_env() is None
    for _ in range(2):
        model.set_env(MatchEnv())
        assert isinstance(model.get_env(), DummyVecEnv)
        model.learn(16, reset_num_timesteps=False)
    assert model.num_timesteps >= 32


@pytest.mark.parametrize("suffix", ["", ".zip", ".model"])
@pytest.mark.parametrize("kind", [str, Path])
def test_paths_of_any_kind_and_suffix(suffix: str, kind: Any, tmp_path: Path) -> None:
    model, path = build(), kind(tmp_path / "folder" / f"model{suffix}")
    model.save(path)
    assert is_same(copy_weights(model), copy_weights(GRPO.load(path, device=DEVICE)))


def test_a_folder_of_the_same_name_is_not_taken_for_the_model(tmp_path: Path) -> None:
    model = build()
    model.save(tmp_path / "model")
    (tmp_path / "model").mkdir()
    assert is_same(copy_weights(model), copy_weights(GRPO.load(tmp_path / "model", device=DEVICE)))


def test_open_files_are_written_and_read(tmp_path: Path) -> None:
    model, path = build(), tmp_path / "model.zip"
    with path.open("wb") as file:
        model.save(file)
    with path.open("rb") as file:
        assert is_same(copy_weights(model), copy_weights(GRPO.load(file, device=DEVICE)))


def test_a_stream_is_read_from_its_beginning_wherever_it_stands() -> None:
    model, stream = build(), io.BytesIO()
    model.save(stream)
    for position in (stream.tell(), 0, 10):
        stream.seek(position)
        assert is_same(copy_weights(model), copy_weights(GRPO.load(stream, device=DEVICE)))


def test_a_name_with_a_dot_is_found_with_its_suffix_too(tmp_path: Path) -> None:
    model = build()
    model.save(tmp_path / "model_0.5.zip")
    assert is_same(copy_weights(model), copy_weights(GRPO.load(tmp_path / "model_0.5", device=DEVICE)))


def test_a_file_opened_as_text_is_refused_as_sb3_refuses_it(tmp_path: Path) -> None:
    with (tmp_path / "model.zip").open("w") as file, pytest.raises(TypeError):
        build().save(file)  # type: ignore[arg-type]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"no zip at all")
    with pytest.raises(ModelFileError):
        GRPO.load(tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        GRPO.load(tmp_path / "none")


@pytest.mark.parametrize("name", ["custom_objects", "kwargs"])
def test_hyperparameters_may_be_replaced_on_load(name: str) -> None:
    changes: dict[str, Any] = {"learning_rate": 0.5, "n_epochs": 7, "clip_range": LinearSchedule(0.3, 0.1, 1.0)}
    arguments: dict[str, Any] = {"custom_objects": changes} if name == "custom_objects" else changes
    loaded = reload(build(), env=MatchEnv(), **arguments)
    assert (loaded.learning_rate, loaded.n_epochs) == (0.5, 7)
    loaded.learn(16)
    assert loaded.logger.name_to_value["train/learning_rate"] == 0.5
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 0.5


def test_arguments_of_load_win_over_custom_objects() -> None:
    assert reload(build(), custom_objects={"n_epochs": 3}, n_epochs=5).n_epochs == 5


@pytest.mark.parametrize(
    "arguments", [{"gamma": 2.0}, {"n_steps": 17}, {"policy_kwargs": {}}, {"nonsense": 1}], ids=str
)
def test_arguments_that_do_not_fit_are_refused_on_load(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        reload(build(), env=MatchEnv(), **arguments)


def test_every_hyperparameter_and_counter_comes_back() -> None:
    model = build(
        learning_rate=LinearSchedule(0.01, 0.0, 1.0),
        clip_range_high=0.3,
        baseline="leave_one_out",
        advantage_scaling="group",
        loss_normalization="branch",
        kl_coef=0.1,
        ref_sync_steps=64,
        target_kl=0.5,
        ent_coef=0.01,
        restart_probability=0.25,
        stats_window_size=7,
    )
    model.learn(32)
    loaded = reload(model)
    names = [
        *MODES["branch"],
        *("clip_range_high", "baseline", "advantage_scaling", "loss_normalization", "kl_coef", "ref_sync_steps"),
        *("target_kl", "ent_coef", "restart_probability", "batch_size", "n_epochs", "seed", "_stats_window_size"),
        *("num_timesteps", "_n_updates", "n_envs", "policy_class"),
    ]
    assert {name: getattr(loaded, name) for name in names} == {name: getattr(model, name) for name in names}
    assert isinstance(loaded.learning_rate, LinearSchedule)


def test_an_environment_may_be_given_by_its_id_and_the_window_of_the_mean_changed() -> None:
    model = GRPO("MlpPolicy", "CartPole-v1", seed=0, n_steps=64, device=DEVICE)
    loaded = reload(model, env="CartPole-v1", stats_window_size=3).learn(64)
    assert loaded.ep_info_buffer is not None
    assert loaded.ep_info_buffer.maxlen == 3
    assert reload(model, custom_objects={"stats_window_size": 3})._stats_window_size == 3
    model.set_env("CartPole-v1")
    model.learn(64)
    with pytest.raises(ValueError, match="env is 5, of type int, which has no step"):
        model.set_env(5)  # type: ignore[arg-type]


def test_going_on_after_load_tells_once_that_the_reference_policy_is_another() -> None:
    model = build(kl_coef=0.5)
    model.learn(16)
    model.learn(16, reset_num_timesteps=False)
    loaded = reload(model, env=MatchEnv())
    with pytest.warns(UserWarning, match=r"kl_coef=0.5 now keeps .* Pass reset_num_timesteps=True"):
        loaded.learn(16, reset_num_timesteps=False)
    loaded.learn(16, reset_num_timesteps=False)  # warnings are errors
    reload(model, env=MatchEnv()).learn(16)
    reload(model, env=MatchEnv(), ref_sync_steps=16).learn(16, reset_num_timesteps=False)
    reload(model, env=MatchEnv(), kl_coef=0.0).learn(16, reset_num_timesteps=False)


def test_a_file_of_before_an_option_existed_gives_it_its_default() -> None:
    from grpo_core.saving import model_file
    from grpo_core.saving.model_state import get_weights
    from grpo_core.saving.optimizer_state import describe_optimizer

    model = build(kl_coef=0.5)
    model.learn(16)
    content = model_file.from_bytes(model.to_bytes(), with_optimizer=True)
    meta = json.loads(json.dumps(content.meta))
    for name in ("kl_coef", "restart_probability", "importance_level"):
        del meta["hyperparameters"][name]
    older = model_file.to_bytes(
        meta, get_weights(model.policy), describe_optimizer(model.policy.optimizer, model.policy)[1], {}
    )
    loaded = GRPO.load(io.BytesIO(older), env=MatchEnv(), device=DEVICE)
    assert (loaded.kl_coef, loaded.restart_probability, loaded.importance_level) == (0.0, 0.0, "step")
    loaded.learn(16)


def test_recipes_of_custom_objects_for_other_algorithms_load_it_too() -> None:
    recipe = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = build()
    loaded = reload(model, custom_objects=recipe)
    assert is_same(copy_weights(model), copy_weights(loaded))
    loaded.set_env(MatchEnv())
    loaded.learn(16)
    assert is_same(copy_weights(model), copy_weights(loaded)), "a step size of 0 learns nothing"


def test_a_schedule_that_starts_at_0_is_loaded_again() -> None:
    model = build(learning_rate=lambda progress: 0.1 * (1.0 - progress))
    with pytest.warns(UserWarning, match="learning_rate is a function"):
        content = model.to_bytes()
    assert GRPO.load(io.BytesIO(content), device=DEVICE).lr_schedule(1.0) == 0.0


def test_a_schedule_that_is_a_function_is_missed_with_a_warning() -> None:
    model = build(learning_rate=lambda progress: 0.25 * progress)
    with pytest.warns(UserWarning, match="learning_rate is a function"):
        content = model.to_bytes()
    assert GRPO.load(io.BytesIO(content), device=DEVICE).learning_rate == 0.25


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_parameters_go_out_and_in(observation: str) -> None:
    model = build_over(observation, "discrete")
    model.learn(16)
    parameters: dict[str, Any] = model.get_parameters()
    assert set(parameters) == {"policy", "policy.optimizer"}
    other = build_over(observation, "discrete", seed=1)
    assert not is_same(copy_weights(model), copy_weights(other))
    other.set_parameters(parameters)
    assert is_same(copy_weights(model), copy_weights(other))
    model.learn(16)
    assert not is_same(copy_weights(model), copy_weights(other)), "they were copied"


def test_parameters_must_match_exactly_unless_told_otherwise() -> None:
    model = build()
    parameters: dict[str, Any] = model.get_parameters()
    with pytest.raises(ValueError, match="do not match"):
        model.set_parameters({"policy": parameters["policy"]})
    with pytest.raises(ValueError, match="invalid object name"):
        model.set_parameters({**parameters, "nonsense": parameters["policy"]})
    bias = parameters["policy"].pop("action_net.bias")
    with pytest.raises(RuntimeError, match=r"action_net\.bias"):
        model.set_parameters(parameters)
    before = copy_weights(model)
    changed: dict[str, Any] = {"policy": {"action_net.weight": torch.full_like(before["action_net.weight"], 0.5)}}
    model.set_parameters(changed, exact_match=False)
    after = copy_weights(model)
    assert torch.all(after.pop("action_net.weight") == 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert torch.equal(bias.cpu(), before["action_net.bias"])


def test_another_algorithms_weights_are_taken_and_its_optimizer_is_not() -> None:
    model = build()
    ppo = PPO("MlpPolicy", MatchEnv(), n_steps=8, batch_size=8, policy_kwargs=model.policy_kwargs, device=DEVICE)
    parameters: dict[str, Any] = ppo.get_parameters()
    before = copy_weights(model)
    with pytest.raises(ValueError, match="take another algorithm's weights alone"):
        model.set_parameters(parameters)
    assert is_same(copy_weights(model), before)
    model.set_parameters({"policy": parameters["policy"]}, exact_match=False)
    assert is_same(copy_weights(model), {name: tensor.cpu() for name, tensor in parameters["policy"].items()})


def get_mean(env: VecNormalize) -> Any:
    assert isinstance(env.obs_rms, RunningMeanStd)
    return env.obs_rms.mean


def test_statistics_of_vec_normalize_are_in_the_file() -> None:
    model = build(VecNormalize(make_vec_env(MatchEnv, 2), gamma=0.9))
    model.learn(64)
    trained, loaded = model.get_vec_normalize_env(), reload(model, env=make_vec_env(MatchEnv, 2))
    restored = loaded.get_vec_normalize_env()
    assert trained is not None
    assert restored is not None
    np.testing.assert_array_equal(get_mean(restored), get_mean(trained))
    assert restored.ret_rms.var == trained.ret_rms.var
    assert restored.gamma == 0.9
    loaded.learn(32, reset_num_timesteps=False)


@pytest.mark.parametrize("by", ["load", "set_env"])
def test_a_vec_normalize_of_ones_own_keeps_its_settings_and_gets_the_statistics(by: str) -> None:
    model = build(VecNormalize(make_vec_env(MatchEnv, 2), clip_obs=10.0, gamma=0.99))
    model.learn(64)
    trained = model.get_vec_normalize_env()
    assert trained is not None
    own = VecNormalize(make_vec_env(MatchEnv, 2), training=False, norm_reward=False, clip_obs=5.0, gamma=0.5)
    loaded = reload(model, env=own if by == "load" else None)
    if by == "set_env":
        loaded.set_env(own)
    assert loaded.get_vec_normalize_env() is own
    assert (own.training, own.norm_reward, own.clip_obs, own.gamma) == (False, False, 5.0, 0.5)
    np.testing.assert_array_equal(get_mean(own), get_mean(trained))


def test_statistics_of_ones_own_that_are_of_as_many_steps_stay_as_they_are() -> None:
    train, test = (VecNormalize(make_vec_env(MatchEnv, 1)) for _ in range(2))
    model = build(train)
    model.learn(32)
    saved, later = io.BytesIO(), float(train.ret_rms.count)
    model.save(saved)
    model.learn(32, reset_num_timesteps=False)
    assert train.ret_rms.count > later
    test.obs_rms, mean = train.obs_rms, get_mean(train).copy()  # as SB3's guide shares them
    GRPO.load(saved, env=test, device=DEVICE)
    np.testing.assert_array_equal(get_mean(train), mean)


@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_a_policy_is_saved_and_loaded_by_itself_as_in_sb3(observation: str, tmp_path: Path) -> None:
    model = build_over(observation, "discrete")
    model.learn(16)
    model.policy.save(str(tmp_path / "policy.pt"))
    policy = type(model.policy).load(str(tmp_path / "policy.pt"), device=DEVICE)
    observations = sample_observations(model, 4)
    np.testing.assert_array_equal(
        policy.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )


def test_print_system_info_says_what_it_was_saved_with(capsys: pytest.CaptureFixture[str]) -> None:
    reload(build(), print_system_info=True)
    assert "stable_baselines3" in capsys.readouterr().out


def test_a_registered_environment_is_reloaded_by_its_spaces_alone() -> None:
    model = build("CartPole-v1")
    model.learn(16)
    loaded = reload(model, env=gym.make("CartPole-v1"))
    assert loaded.observation_space == model.observation_space
    loaded.learn(16)


@pytest.mark.parametrize("observation", ["image", "dict"])
def test_policies_are_found_again_by_their_class(observation: str) -> None:
    loaded = reload(build_over(observation, "discrete"))
    assert loaded.policy_class is GRPO.policy_aliases[POLICY_OF[observation]]


@pytest.mark.parametrize(
    ("part", "name", "reason"),
    [
        ("weights", "value_net.bias", "the loss is not finite"),
        ("optimizer", "0/exp_avg", r"left NaN or infinite numbers in .*policy_net\.0\.weight"),
    ],
)
def test_numbers_of_a_file_that_no_training_bears_are_told_from_a_training_that_diverges(
    part: str, name: str, reason: str
) -> None:
    content = model_file.from_bytes(GRPO("MlpPolicy", "CartPole-v1", seed=0).learn(1).to_bytes(), with_optimizer=True)
    getattr(content, part)[name].flat[0] = 3e38
    file = model_file.to_bytes(content.meta, content.weights, content.optimizer)
    model = GRPO.load(io.BytesIO(file), env="CartPole-v1")
    with pytest.raises(ValueError, match=f"{reason}.*init_model.* may be the cause: begin from another one, or lower"):
        model.learn(1)


def test_an_update_that_leaves_weights_that_are_not_finite_is_refused_at_once() -> None:
    plain = GRPO("MlpPolicy", "CartPole-v1", seed=0, learning_rate=1e38, max_grad_norm=1e38, n_epochs=1)
    plain.batch_size = plain.n_steps * 100  # one step: no loss sees where it leads
    with pytest.raises(ValueError, match=r"^the update left NaN or infinite numbers in \S+; lower learning_rate"):
        plain.learn(1)


def test_spaces_with_other_bounds_are_taken_from_custom_objects() -> None:
    model = build()
    wider = spaces.Box(-2.0, 2.0, model.observation_space.shape, np.float32)
    env = DummyVecEnv([lambda: MatchEnv(wider, model.action_space)])
    loaded = reload(model, env=env, custom_objects={"observation_space": wider, "action_space": model.action_space})
    assert loaded.learn(64).observation_space == wider
    with pytest.raises(ValueError, match=r"custom_objects\['action_space'\] is Discrete\(7\), and the model was saved"):
        reload(model, custom_objects={"action_space": spaces.Discrete(7)})


def test_a_policy_that_sb3_has_loaded_is_none_of_the_users_own(tmp_path: Path) -> None:
    model = build()
    model.policy.save(str(tmp_path / "policy"))
    model.policy = ActorCriticPolicy.load(str(tmp_path / "policy"), device=DEVICE)
    assert is_same(copy_weights(reload(model)), copy_weights(model))


def test_a_schedule_of_a_class_that_only_looks_linear_is_told_of() -> None:
    class WarmUp(LinearSchedule):
        def __call__(self, progress_remaining: float) -> float:
            return 1e-3 * min(1.0, 1.1 - progress_remaining)

    with pytest.warns(UserWarning, match="learning_rate is a function, which a model file does not hold"):
        build(learning_rate=WarmUp(1e-3, 0.0, 1.0)).to_bytes()


def test_a_model_whose_monitor_writes_a_file_is_not_copied(tmp_path: Path) -> None:
    model = GRPO("MlpPolicy", make_vec_env("CartPole-v1", monitor_dir=str(tmp_path)), device=DEVICE)
    with pytest.raises(TypeError, match=r"a monitor writes .*0\.monitor\.csv, and two copies would spoil that file"):
        copy.deepcopy(model)
    model.get_env().close()  # type: ignore[union-attr]


def test_a_number_of_numpys_may_say_how_many_episodes_are_averaged() -> None:
    assert build(stats_window_size=np.int64(3)).learn(64).ep_info_buffer.maxlen == 3  # type: ignore[union-attr]
