"""Exported policies choose what their models choose, whoever runs them."""

import functools
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core.export.policy_file import EXPORT_FORMATS, MissingPackageError, check_installed, export_model, find_format
from grpo_core.saving import model_file
from grpo_core.saving.model_file import OwnPartsError
from grpo_core.spaces import UnsupportedSpaceError, count_mask_bits
from tests.environments import SpaceEnv
from tests.sb3.small_models import sample_observations

N_OBSERVATIONS = 1000
NUMBERS = spaces.Box(-2.0, 2.0, (5,))
IMAGE = spaces.Box(0, 255, (3, 40, 37), np.uint8)
PARTS = spaces.Dict(
    {
        "zebra": spaces.Box(-1.0, 1.0, (2, 3)),
        "choice": spaces.Discrete(4),
        "flags of it": spaces.MultiBinary(3),
        "action_masks": spaces.Box(-5, 5, (2,), np.int64),
        "view": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    }
)
OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "floats": NUMBERS,
    "doubles": spaces.Box(-2.0, 2.0, (2, 2), np.float64),
    "halves": spaces.Box(-2.0, 2.0, (3,), np.float16),
    "integers": spaces.Box(-9, 9, (3,), np.int32),
    "discrete": spaces.Discrete(7),
    "choices": spaces.MultiDiscrete([2, 3, 4]),
    "binary": spaces.MultiBinary([2, 3]),
    "image": IMAGE,
    "flat image": IMAGE,
    "scaled image": spaces.Box(0.0, 1.0, (2, 36, 36)),
    "dict": PARTS,
}
ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(5),
    "one": spaces.Discrete(1),
    "choices": spaces.MultiDiscrete([3, 2, 4]),
    "binary": spaces.MultiBinary(6),
    "floats": spaces.Box(np.array([-0.3, -1.0], np.float32), np.array([0.5, 2.0], np.float32)),
    "doubles": spaces.Box(-0.5, 0.25, (2, 2), np.float64),
}
POLICIES = {"image": "CnnPolicy", "scaled image": "CnnPolicy", "dict": "MultiInputPolicy"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "image": {"features_extractor_kwargs": {"features_dim": 16}},
    "scaled image": {"features_extractor_kwargs": {"features_dim": 16, "normalized_image": True}},
    "dict": {"features_extractor_kwargs": {"cnn_output_dim": 16}},
}
CASES = [(name, "discrete") for name in OBSERVATION_SPACES] + [("floats", name) for name in ACTION_SPACES]

Run = Callable[[bytes, Any, Any], npt.NDArray[Any]]


def run_onnx(content: bytes, observations: Any, masks: Any = None) -> npt.NDArray[Any]:
    pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-dev.txt")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, see requirements-dev.txt")
    session = onnxruntime.InferenceSession(content)
    feed = {"observation": observations}
    if isinstance(observations, dict):
        feed = {f"observation/{key}": array for key, array in observations.items()}
    actions: npt.NDArray[Any] = session.run(["action"], feed if masks is None else {**feed, "action_masks": masks})[0]
    return actions


def load(content: bytes, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that of loading; writing has to be silent
        return torch.jit.load(io.BytesIO(content), **arguments)  # type: ignore[no-untyped-call]


def run_torchscript(content: bytes, observations: Any, masks: Any = None) -> npt.NDArray[Any]:
    module = load(content)
    tensors = (
        {key: torch.from_numpy(array) for key, array in observations.items()}
        if isinstance(observations, dict)
        else torch.from_numpy(observations)
    )
    actions: npt.NDArray[Any] = module(tensors, *([] if masks is None else [torch.from_numpy(masks)])).numpy()
    return actions


RUNS: dict[str, Run] = {"onnx": run_onnx, "torchscript": run_torchscript}


@functools.cache
def make_model(observation: str, action: str, activation: str = "Tanh", normalized: bool = False) -> GRPO:
    """Build a model whose actions differ from one observation to the next, unlike those of one before its training."""
    env: Any = DummyVecEnv([lambda: SpaceEnv(OBSERVATION_SPACES[observation], ACTION_SPACES[action])])
    if normalized:
        env = VecNormalize(
            env, clip_obs=1.5, norm_obs_keys=["zebra", "action_masks"] if observation == "dict" else None
        )
    arguments = {"net_arch": [16, 8], "activation_fn": getattr(torch.nn, activation), **ARGUMENTS.get(observation, {})}
    policy = POLICIES.get(observation, "MlpPolicy")
    model = GRPO(policy, env, n_steps=8, group_size=2, horizon=2, seed=0, device="cpu", policy_kwargs=arguments)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@functools.cache
def draw_observations(observation: str) -> Any:
    return sample_observations(make_model(observation, "discrete"), N_OBSERVATIONS)


def export(model: GRPO, name: str, with_masks: bool = False) -> bytes:
    if name == "onnx":
        pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-dev.txt")
    return export_model(model_file.from_bytes(model.to_bytes()), name, with_masks)


def check_same(chosen: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    assert chosen.shape == expected.shape
    if chosen.dtype.kind != "f":  # SB3 predicts binary digits as floats
        np.testing.assert_array_equal(chosen, expected)
        assert len(np.unique(expected, axis=0)) > 1 or expected.max() == 0, "all observations get the same action"
        return
    assert chosen.dtype == expected.dtype
    np.testing.assert_allclose(chosen, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EXPORT_FORMATS)
@pytest.mark.parametrize(("observation", "action"), CASES)
def test_an_exported_policy_chooses_what_the_model_predicts(name: str, observation: str, action: str) -> None:
    model = make_model(observation, action)
    observations = draw_observations(observation)
    expected, _ = model.predict(observations, deterministic=True)
    check_same(RUNS[name](export(model, name), observations, None), expected)


@pytest.mark.parametrize("name", EXPORT_FORMATS)
@pytest.mark.parametrize("observation", ["floats", "doubles", "integers", "dict"])
def test_it_normalises_and_clips_as_vec_normalize_does(name: str, observation: str) -> None:
    model = make_model(observation, "floats", normalized=True)
    venv = model.get_vec_normalize_env()
    assert venv is not None
    generator = np.random.default_rng(0)
    for statistics in venv.obs_rms.values() if isinstance(venv.obs_rms, dict) else [venv.obs_rms]:
        statistics.mean = generator.normal(size=statistics.mean.shape)
        statistics.var = generator.uniform(0.1, 2.0, size=statistics.var.shape)
    observations = draw_observations(observation)
    expected, _ = model.predict(venv.normalize_obs(observations), deterministic=True)
    check_same(RUNS[name](export(model, name), observations, None), expected)


@pytest.mark.parametrize("name", EXPORT_FORMATS)
@pytest.mark.parametrize("activation", ["ReLU", "ELU", "LeakyReLU"])
def test_it_knows_every_activation(name: str, activation: str) -> None:
    model = make_model("floats", "doubles", activation)
    observations = draw_observations("floats")
    check_same(RUNS[name](export(model, name), observations, None), model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize("name", EXPORT_FORMATS)
@pytest.mark.parametrize("action", ["discrete", "choices", "binary"])
def test_it_obeys_masks_where_it_is_to_take_them(name: str, action: str) -> None:
    model = make_model("dict", action)
    observations = draw_observations("dict")
    space = ACTION_SPACES[action]
    masks = np.random.default_rng(0).random((N_OBSERVATIONS, count_mask_bits(space))) < 0.5
    n_choices = {"discrete": [5], "choices": [3, 2, 4], "binary": [2] * 6}[action]
    for start in np.cumsum([0, *n_choices[:-1]]):
        masks[~masks[:, start : start + 2].any(axis=1), start] = True
    content = export(model, name, with_masks=True)
    check_same(
        RUNS[name](content, observations, masks), model.predict(observations, deterministic=True, action_masks=masks)[0]
    )


@pytest.mark.parametrize("name", EXPORT_FORMATS)
def test_actions_of_a_box_cannot_be_masked(name: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match="only discrete choices can be masked"):
        export(make_model("floats", "floats"), name, with_masks=True)


@pytest.mark.parametrize("name", EXPORT_FORMATS)
@pytest.mark.parametrize("n_rows", [1, 3])
def test_it_takes_any_number_of_observations(name: str, n_rows: int) -> None:
    model = make_model("choices", "choices")
    observations = sample_observations(model, n_rows)
    chosen = RUNS[name](export(model, name), observations, None)
    np.testing.assert_array_equal(chosen, model.predict(observations, deterministic=True)[0])


def test_the_same_policy_gives_the_same_bytes() -> None:
    model = make_model("dict", "choices")
    assert export(model, "onnx") == export(model, "onnx")


def test_an_onnx_file_says_what_it_is() -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-dev.txt")
    model = make_model("dict", "choices")
    parsed = onnx.load_from_string(export(model, "onnx", with_masks=True))
    facts = {prop.key: prop.value for prop in parsed.metadata_props}
    inputs = json.loads(facts["inputs"])
    assert [(port["name"], port["dtype"], port["shape"]) for port in inputs] == [
        ("observation/action_masks", "int64", ["batch_size", 2]),
        ("observation/choice", "int64", ["batch_size"]),
        ("observation/flags of it", "int8", ["batch_size", 3]),
        ("observation/view", "uint8", ["batch_size", 1, 36, 36]),
        ("observation/zebra", "float32", ["batch_size", 2, 3]),
        ("action_masks", "bool", ["batch_size", 9]),
    ]
    assert [port.name for port in parsed.graph.input] == [port["name"] for port in inputs]
    assert json.loads(facts["outputs"]) == [{"name": "action", "dtype": "int64", "shape": ["batch_size", 3]}]
    assert json.loads(facts["num_timesteps"]) == 0
    assert json.loads(facts["hyperparameters"])["group_size"] == 2
    assert "tensorboard_log" not in json.loads(facts["hyperparameters"])


def test_a_torchscript_file_says_what_it_is_and_nothing_of_the_machine() -> None:
    content = export(make_model("floats", "doubles"), "torchscript")
    extra = {"grpo.json": ""}
    load(content, _extra_files=extra)
    facts = json.loads(extra["grpo.json"])
    assert facts["outputs"] == [{"name": "action", "dtype": "float64", "shape": ["batch_size", 2, 2]}]
    assert facts["network"]["net_arch"] == {"pi": [16, 8], "vf": [16, 8]}
    assert __file__.rpartition("/tests/")[0].encode() not in content


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"absent": EXPORT_FORMATS["onnx"]._replace(package="no_such_package")}
    monkeypatch.setattr("grpo_core.export.policy_file.EXPORT_FORMATS", absent)
    with pytest.raises(MissingPackageError, match=r"needs the package no_such_package.*pip install onnx"):
        check_installed("absent")


@pytest.mark.parametrize(("path", "name"), [("a/b.onnx", "onnx"), ("b.ONNX", "onnx"), ("m.pt", "torchscript")])
def test_the_end_of_a_name_gives_the_format(path: str, name: str) -> None:
    assert find_format(PurePath(path)) == name


@pytest.mark.parametrize("path", ["m", "m.zip", ".onnx", "m.onnx.gz"])
def test_other_names_are_refused_with_those_that_there_are(path: str) -> None:
    with pytest.raises(ValueError, match=r"end its name in \.onnx \(onnx\) or \.pt \(torchscript\)"):
        find_format(PurePath(path))


def test_a_loaded_model_exports_itself(tmp_path: Path) -> None:
    model = make_model("choices", "floats")
    model.save(tmp_path / "m.zip")
    path = tmp_path / "a new" / "folder" / "m.pt"
    GRPO.load(tmp_path / "m.zip").export(path)
    observations = draw_observations("choices")
    chosen = run_torchscript(path.read_bytes(), observations)
    check_same(chosen, model.predict(observations, deterministic=True)[0])


def test_layers_of_a_users_own_are_not_exported(tmp_path: Path) -> None:
    class OwnExtractor(FlattenExtractor):
        pass

    arguments = {"features_extractor_class": OwnExtractor}
    env = SpaceEnv(NUMBERS, spaces.Discrete(2))
    model = GRPO("MlpPolicy", env, n_steps=8, group_size=2, horizon=2, policy_kwargs=arguments)
    with pytest.raises(OwnPartsError, match="layers of its author's own"):
        model.export(tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())
