"""The model file: what goes in comes out, damage never changes a policy, and nothing in it is ever run."""

import hashlib
import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo_core.actor.actor import Actor
from grpo_core.options.network_json import network_to_json
from grpo_core.options.policies import POLICIES
from grpo_core.saving import model_file
from grpo_core.saving.model_file import ForeignModelError, ModelFileError
from grpo_core.saving.model_state import get_weights, put_weights
from grpo_core.saving.optimizer_state import describe_optimizer, put_optimizer_state
from grpo_core.saving.space_json import space_to_json

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,))
ACTIONS = spaces.Discrete(2)
META: dict[str, Any] = {
    "spaces": {
        "observation": {
            "type": "Box",
            "low": ["-0x1p+0"] * 3,
            "high": ["0x1p+0"] * 3,
            "shape": [3],
            "dtype": "float32",
        },
        "action": {"type": "Discrete", "n": 2, "dtype": "int64"},
    },
    "network": network_to_json({"net_arch": {"pi": [2], "vf": []}}, ActorCriticPolicy),
}
SHAPES = {
    "mlp_extractor.policy_net.0.weight": (2, 3),
    "mlp_extractor.policy_net.0.bias": (2,),
    "action_net.weight": (2, 2),
    "action_net.bias": (2,),
    "value_net.weight": (1, 3),
    "value_net.bias": (1,),
}
FIRST = "weights/mlp_extractor.policy_net.0.weight.npy"

Arrays = dict[str, np.ndarray[Any, Any]]


def draw_weights() -> Arrays:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def draw_optimizer() -> Arrays:
    rng = np.random.default_rng(1)
    moments = {f"{i}/exp_avg": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(SHAPES.values())}
    return {**moments, "0/step": np.array(17.0, np.float32)}


def build_file() -> bytes:
    return model_file.to_bytes(META, draw_weights(), {"0/step": np.array(17.0, np.float32)})


def repack(
    content: bytes,
    replaced: dict[str, bytes] | None = None,
    change_meta: Callable[[dict[str, Any]], None] = lambda meta: None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """Build the file a forger would: any member or metadata replaced, with checksums that fit again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | (replaced or {})
    meta = json.loads(members.pop(model_file.META_MEMBER))
    meta["sha256"] = {name: hashlib.sha256(member).hexdigest() for name, member in members.items()}
    change_meta(meta)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, member in {model_file.META_MEMBER: json.dumps(meta).encode(), **members}.items():
            archive.writestr(name, member)
    return file.getvalue()


def npy(header: str, body: bytes) -> bytes:
    """An array member with a header of one's own."""
    padded = header.encode("latin1") + b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body


def describe(shape: str, dtype: str = "<f4") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


def assert_same_arrays(actual: Arrays, expected: Arrays) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        assert actual[name].shape == array.shape, name
        assert (actual[name] == array).all(), name


def read_damaged(content: bytes) -> model_file.ModelContent | None:
    """Read a damaged file; None if it is refused, as it should be."""
    try:
        return model_file.from_bytes(content, with_optimizer=True)
    except ModelFileError:
        return None


def test_everything_comes_back_as_it_was_saved() -> None:
    content = model_file.from_bytes(
        model_file.to_bytes({**META, "note": "provenance"}, draw_weights(), draw_optimizer()), with_optimizer=True
    )
    assert_same_arrays(content.weights, draw_weights())
    assert_same_arrays(content.optimizer, draw_optimizer())
    assert content.meta["note"] == "provenance"
    assert content.meta["network"] == META["network"]
    assert content.observation_space == OBSERVATIONS
    assert content.action_space == ACTIONS


def test_the_optimizer_is_left_unread_unless_asked_for() -> None:
    assert model_file.from_bytes(build_file()).optimizer == {}


def test_the_actor_built_from_a_file_answers_as_the_saved_weights_do() -> None:
    actor = model_file.from_bytes(build_file()).make_actor()
    expected = Actor.from_weights(OBSERVATIONS, ACTIONS, META["network"], draw_weights())
    observations = np.random.default_rng(2).uniform(-1, 1, (8, 3)).astype(np.float32)
    probs, expected_probs = actor.action_probs(observations), expected.action_probs(observations)
    np.testing.assert_array_equal(probs, expected_probs)
    assert (actor.values(observations) == expected.values(observations)).all()


def test_the_shapes_follow_from_spaces_and_network() -> None:
    assert model_file.expected_shapes(META) == SHAPES
    torque = {"type": "Box", "low": ["-0x1p+0"] * 2, "high": ["0x1p+0"] * 2, "shape": [2], "dtype": "float32"}
    continuous = {**META, "spaces": {**META["spaces"], "action": torque}}
    assert model_file.expected_shapes(continuous)["log_std"] == (2,)


def test_the_same_model_is_the_same_bytes() -> None:
    assert build_file() == build_file()


def test_the_zip_holds_json_and_plain_arrays_only() -> None:
    with zipfile.ZipFile(io.BytesIO(build_file())) as archive:
        names = archive.namelist()
        assert names[0] == "grpo_meta.json"
        assert all(name.startswith(("weights/", "optimizer/")) and name.endswith(".npy") for name in names[1:])
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        json.loads(archive.read("grpo_meta.json"))
        for name in names[1:]:
            np.load(io.BytesIO(archive.read(name)), allow_pickle=False)


def test_arrays_of_another_byte_order_are_read_in_this_machines() -> None:
    weights, moments = draw_weights(), draw_optimizer()
    swapped = ({name: array.astype(">f4") for name, array in arrays.items()} for arrays in (weights, moments))
    content = model_file.from_bytes(model_file.to_bytes(META, *swapped), with_optimizer=True)
    for actual, expected in ((content.weights, weights), (content.optimizer, moments)):
        assert_same_arrays(actual, expected)
        assert all(torch.from_numpy(array).numel() for array in actual.values())


def test_not_a_number_is_not_written_into_the_metadata() -> None:
    with pytest.raises(ValueError, match="JSON"):
        model_file.to_bytes({**META, "score": float("nan")}, draw_weights(), {})


def test_every_truncation_is_refused() -> None:
    content = build_file()
    for length in range(0, len(content) - 1, 7):
        with pytest.raises(ModelFileError):
            model_file.from_bytes(content[:length])


@pytest.mark.parametrize("flip", [0xFF, 0x01, 0x20])
def test_no_flipped_byte_ever_gives_another_policy(flip: int) -> None:
    content, weights = bytearray(build_file()), draw_weights()
    n_refused = 0
    for i in range(len(content)):
        content[i] ^= flip
        damaged = read_damaged(bytes(content))
        content[i] ^= flip
        if damaged is None:
            n_refused += 1
            continue
        assert_same_arrays(damaged.weights, weights)
        assert damaged.meta["network"] == META["network"]
        assert damaged.meta["spaces"] == META["spaces"]
    assert n_refused > len(content) // 2


def test_no_flipped_byte_ever_loses_a_part_of_the_optimizer() -> None:
    content = bytearray(build_file())
    directory = content.index(b"PK\x01\x02")  # member names stand here once more
    for i in range(directory, len(content)):
        content[i] ^= 0x20
        damaged = read_damaged(bytes(content))
        content[i] ^= 0x20
        assert damaged is None or damaged.optimizer.keys() == {"0/step"}, f"byte {i - directory} of the directory"


def test_random_bytes_and_nothing_at_all_are_refused() -> None:
    rng = np.random.default_rng(0)
    for content in (b"", b"PK", b"not a zip", rng.bytes(4096)):
        with pytest.raises(ModelFileError):
            model_file.from_bytes(content)


def test_compressed_members_are_refused() -> None:
    with pytest.raises(ModelFileError, match="compressed"):
        model_file.from_bytes(repack(build_file(), compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("name", [FIRST, "grpo_meta.json"])
def test_duplicate_members_are_refused(name: str) -> None:
    file = io.BytesIO(build_file())
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(name, archive.read(name))
    with pytest.raises(ModelFileError, match="duplicate"):
        model_file.from_bytes(file.getvalue())


def test_too_many_members_are_refused() -> None:
    extra = {f"optimizer/{i}/step.npy": b"" for i in range(model_file.SERVICE_LIMITS.n_members)}
    with pytest.raises(ModelFileError, match="too many members"):
        model_file.from_bytes(repack(build_file(), extra))


def test_a_missing_array_is_named() -> None:
    weights = draw_weights()
    del weights["action_net.bias"]
    with pytest.raises(ModelFileError, match=r"lacks weights/action_net\.bias\.npy"):
        model_file.from_bytes(model_file.to_bytes(META, weights, {}))


@pytest.mark.parametrize("shape", [(3, 2), (2, 4), (6,), (2, 3, 1)])
def test_an_array_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    weights = {**draw_weights(), "mlp_extractor.policy_net.0.weight": np.zeros(shape, np.float32)}
    with pytest.raises(ModelFileError, match=r"not a float array of shape \(2, 3\)"):
        model_file.from_bytes(model_file.to_bytes(META, weights, {}))


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64", "<U4", "datetime64[s]"])
def test_an_array_of_another_kind_is_refused(dtype: str) -> None:
    weights = {**draw_weights(), "mlp_extractor.policy_net.0.weight": np.zeros((2, 3), dtype)}
    with pytest.raises(ModelFileError, match="not a float array"):
        model_file.from_bytes(model_file.to_bytes(META, weights, {}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_array_with_numbers_that_are_none_is_refused(bad: float) -> None:
    weights = draw_weights()
    weights["value_net.bias"][0] = bad
    with pytest.raises(ModelFileError, match="NaN or infinite"):
        model_file.from_bytes(model_file.to_bytes(META, weights, {}))


def test_arrays_swapped_for_others_of_the_same_shape_are_refused() -> None:
    content = build_file()
    other = io.BytesIO()
    np.save(other, np.ones((2, 3), np.float32))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        digests = json.loads(archive.read("grpo_meta.json"))["sha256"]
    forged = repack(content, {FIRST: other.getvalue()}, lambda meta: meta.update(sha256=digests))
    with pytest.raises(ModelFileError, match="is not the array that was saved"):
        model_file.from_bytes(forged)


class Canary:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_an_array_of_objects_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickled = io.BytesIO()
    objects = np.empty((2, 3), object)
    objects[...] = Canary(canary)
    np.save(pickled, objects, allow_pickle=True)
    for member, with_optimizer in ((FIRST, False), ("optimizer/0/exp_avg.npy", True)):
        with pytest.raises(ModelFileError, match="object"):
            model_file.from_bytes(repack(build_file(), {member: pickled.getvalue()}), with_optimizer)
    assert not canary.exists()


@pytest.mark.parametrize("member", [FIRST, "optimizer/0/exp_avg.npy"])
@pytest.mark.parametrize(
    "header",
    [
        describe("(1000000000, 3)"),
        describe("(1000000000,) * 2"),
        describe("(2, 3000000000)"),
        describe("(-2, -3)"),
        describe("(2, 3)", dtype="<f8"),
        describe("(2, 3)", dtype="|O"),
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 3), }",
        describe("(2, 3")[:-3],
        "{" * 60,
        "'''",
        "__import__('os').getpid()",
    ],
    ids=lambda header: header[:70],
)
def test_a_forged_array_header_is_refused(member: str, header: str) -> None:
    forged = repack(build_file(), {member: npy(header, bytes(24))})
    assert read_damaged(forged) is None


@pytest.mark.parametrize(
    "header",
    ["if 1:\n    x\n  y\n", describe("(" + "-" * 900 + "1,)"), "{" * 900, "(" * 900, describe("(2, 3)") + "\0"],
    ids=["indentation", "minus signs", "braces", "brackets", "null"],
)
def test_a_header_that_python_itself_chokes_on_is_refused(header: str) -> None:
    """Its parser raises what no reader expects of a file, such as MemoryError."""
    with pytest.raises(ModelFileError, match="not a float array"):
        model_file.from_bytes(repack(build_file(), {FIRST: npy(header, bytes(24))}))


def test_weights_that_no_32_bit_float_holds_are_refused() -> None:
    weights = draw_weights()
    name = next(iter(weights))
    weights[name] = np.full(weights[name].shape, 1e39)
    with pytest.raises(ModelFileError, match="too large for a 32-bit float"):
        model_file.from_bytes(model_file.to_bytes(META, weights, {}))


@pytest.mark.parametrize("n_members", [1025, 3000])
def test_members_are_counted_before_they_are_read(n_members: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(n_members):
            archive.writestr(zipfile.ZipInfo(str(i)), b"")
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ModelFileError, match=f"too many members: {n_members}; at most 1024"):
        model_file.from_bytes(file.getvalue())


def test_a_directory_in_the_form_for_large_zips_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content, large = build_file(), b"PK\x06\x07" + bytes(16)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 46, 0, 0)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ModelFileError, match="large zips"):
        model_file.from_bytes(content + large + end)


def test_a_header_claiming_gigabytes_is_refused_without_allocating_them() -> None:
    forged = repack(build_file(), {"optimizer/0/exp_avg.npy": npy(describe("(1000000000, 4)"), bytes(24))})
    wide = repack(build_file(), change_meta=lambda meta: meta["network"]["net_arch"].update(pi=[10**9]))
    tracemalloc.start()
    try:
        for content in (forged, wide):
            assert read_damaged(content) is None
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * 2**20


def test_members_that_claim_to_be_larger_than_any_file_are_refused() -> None:
    content = bytearray(build_file())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (2**31).to_bytes(4, "little")  # uncompressed size, in the central directory
    with pytest.raises(ModelFileError, match="larger"):
        model_file.from_bytes(bytes(content))


def test_a_file_beyond_the_size_limit_is_refused_unread() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return model_file.SERVICE_LIMITS.file_bytes + 1

    with pytest.raises(ModelFileError, match=f"at most {model_file.SERVICE_LIMITS.file_bytes}"):
        model_file.from_bytes(Huge(build_file()))


def test_metadata_beyond_its_limit_is_refused() -> None:
    with pytest.raises(ModelFileError, match="larger than"):
        model_file.from_bytes(repack(build_file(), change_meta=lambda meta: meta.update(padding="x" * 2**20)))


def set_entry(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(meta: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for name in parents:
            meta = meta[name]
        meta[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", "grpo-model/2"),
        ("format", None),
        ("sha256", None),
        ("sha256", {}),
        ("network", None),
        ("network/activation", "Softmax"),
        ("network/activation", []),
        ("network/net_arch", None),
        ("network/net_arch", {"pi": [2]}),
        ("network/net_arch", {"pi": [-2], "vf": []}),
        ("network/net_arch", {"pi": ["2"], "vf": []}),
        ("spaces", {}),
        ("spaces/action", {"type": "Discrete", "n": 0}),
        ("spaces/action", {"type": "Discrete", "n": 10**30}),
        ("spaces/action", {"type": "Dict"}),
        ("spaces/action", {"type": "MultiDiscrete", "nvec": [3]}),
        ("spaces/action", {"type": "MultiDiscrete", "nvec": [2], "dtype": "float32"}),
        ("spaces/action", {"type": "MultiBinary", "n": -2}),
        ("spaces/observation", {"type": "Dict", "spaces": [["a", {"type": "Dict", "spaces": []}]]}),
        ("spaces/observation", {"type": "Dict", "spaces": []}),
        ("spaces/observation", {"type": "Tuple", "spaces": []}),
        ("network/policy", "LstmPolicy"),
        ("network/policy", "CnnPolicy"),
        ("network/policy", ["MlpPolicy"]),
        ("network/share_features_extractor", 0),
        ("network/normalize_images", "no"),
        ("network/features_extractor_kwargs", {"features_dim": 3}),
        ("network/features_extractor_kwargs", None),
        ("spaces/action", []),
        ("spaces/observation/shape", [10**9]),
        ("spaces/observation/shape", [-1, 10**9]),
        ("spaces/observation/dtype", "O"),
        ("spaces/observation/dtype", "no such type"),
        ("spaces/observation/low", ["nan"] * 3),
        ("spaces/observation/low", ["0x1p+0"] * 2),
        ("spaces/observation/high", ["-0x1p+9"] * 3),
    ],
    ids=str,
)
def test_metadata_that_does_not_describe_the_arrays_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ModelFileError):
        model_file.from_bytes(repack(build_file(), change_meta=set_entry(path, value)))


@pytest.mark.parametrize("meta", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": "grpo-model/1"}'])
def test_metadata_that_is_no_metadata_is_refused(meta: bytes) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("grpo_meta.json", meta)
    with pytest.raises(ModelFileError):
        model_file.from_bytes(file.getvalue())


def test_a_model_of_another_algorithm_is_refused_and_nothing_in_it_is_run(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "ppo.zip"
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs={"net_arch": [2]}, device="cpu")
    model.booby_trap = Canary(canary)  # type: ignore[attr-defined]  # SB3 pickles whatever it finds on the model
    model.save(path)
    with pytest.raises(ForeignModelError, match=r"not saved by GRPO.*pickles"):
        model_file.from_bytes(path.read_bytes())
    assert not canary.exists()
    PPO.load(path, device="cpu")
    assert canary.exists(), "the trap is a real one"


FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)
CAR = spaces.Dict({"camera": spaces.Box(0, 255, (1, 40, 36), np.uint8), "speed": OBSERVATIONS, "gear": ACTIONS})


def build_policy(
    policy: str, space: spaces.Space[Any], **policy_kwargs: Any
) -> tuple[ActorCriticPolicy, dict[str, Any]]:
    """A policy of SB3 and the metadata of its file."""
    policy_class = POLICIES[policy]
    described = {
        "spaces": {"observation": space_to_json(space), "action": space_to_json(ACTIONS)},
        "network": network_to_json(policy_kwargs, policy_class),
    }
    return policy_class(space, ACTIONS, lambda _: 1e-3, **policy_kwargs), json.loads(json.dumps(described))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("policy", "space", "extractor_kwargs"),
    [
        ("MlpPolicy", OBSERVATIONS, {}),
        ("MlpPolicy", CAR["camera"], {}),
        ("CnnPolicy", FRAMES, {}),
        ("CnnPolicy", CAR["camera"], {"features_dim": 5}),
        ("MultiInputPolicy", CAR, {}),
        ("MultiInputPolicy", CAR, {"cnn_output_dim": 5}),
    ],
    ids=str,
)
def test_the_shapes_are_those_of_sb3s_policies(
    policy: str, space: spaces.Space[Any], extractor_kwargs: dict[str, Any], share: bool
) -> None:
    built, meta = build_policy(
        policy, space, share_features_extractor=share, features_extractor_kwargs=extractor_kwargs
    )
    assert model_file.expected_shapes(meta) == {name: array.shape for name, array in get_weights(built).items()}


@pytest.mark.parametrize("share", [True, False])
def test_a_policy_of_convolutions_comes_back_whole(share: bool) -> None:
    policy, meta = build_policy("MultiInputPolicy", CAR, share_features_extractor=share)
    observation = {"camera": CAR["camera"].sample()[None], "speed": np.zeros((1, 3), np.float32), "gear": np.array([1])}
    values = policy.predict_values({key: torch.as_tensor(array) for key, array in observation.items()})
    torch.autograd.backward(values.sum())
    policy.optimizer.step()
    content = model_file.from_bytes(
        model_file.to_bytes(meta, get_weights(policy), describe_optimizer(policy.optimizer, policy)[1]),
        with_optimizer=True,
    )
    other, _ = build_policy("MultiInputPolicy", CAR, share_features_extractor=share)
    put_weights(other, content.weights)
    put_optimizer_state(other.optimizer, other, content)
    for name, array in get_weights(policy).items():
        np.testing.assert_array_equal(get_weights(other)[name], array, strict=True)
    assert_same_arrays(describe_optimizer(other.optimizer, other)[1], describe_optimizer(policy.optimizer, policy)[1])
    probs = content.make_actor().action_probs(observation)
    np.testing.assert_array_equal(
        probs, Actor.from_weights(CAR, ACTIONS, meta["network"], get_weights(other)).action_probs(observation)
    )


def test_two_networks_of_convolutions_on_84_pixels_with_their_moments_fit_a_file() -> None:
    policy, meta = build_policy("CnnPolicy", FRAMES, share_features_extractor=False)
    weights = get_weights(policy)
    moments = {f"{i}/{name}": array for i, array in enumerate(weights.values()) for name in ("exp_avg", "exp_avg_sq")}
    content = model_file.to_bytes(meta, weights, moments)
    assert len(content) < model_file.SERVICE_LIMITS.file_bytes // 3
    assert_same_arrays(model_file.from_bytes(content, with_optimizer=True).optimizer, moments)


def test_a_script_reads_and_writes_what_is_too_large_for_a_server() -> None:
    moments = {"0/exp_avg": np.zeros(2**25, np.float32)}  # 128 MiB
    content = model_file.to_bytes(META, draw_weights(), moments)
    with pytest.raises(ModelFileError, match="at most 134217728 are read"):
        model_file.from_bytes(content)
    read = model_file.from_bytes(content, with_optimizer=True, limits=model_file.LIBRARY_LIMITS)
    assert_same_arrays(read.optimizer, moments)
    many = {f"{i}/step": np.zeros((), np.float32) for i in range(1024)}
    content = model_file.to_bytes(META, draw_weights(), many)
    with pytest.raises(ModelFileError, match=r"too many members: .* at most 1024"):
        model_file.from_bytes(content)
    read = model_file.from_bytes(content, with_optimizer=True, limits=model_file.LIBRARY_LIMITS)
    assert_same_arrays(read.optimizer, many)


def test_what_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad, said in ((np.full((1, 3), np.nan), "NaN or infinite"), (np.full((1, 3), 1e39), "too large for a 32-bit")):
        with pytest.raises(ModelFileError, match=rf"weights/value_net\.weight\.npy holds .*{said}"):
            model_file.to_bytes(META, {**draw_weights(), "value_net.weight": bad}, {})
    with pytest.raises(ModelFileError, match=r"optimizer/0/exp_avg\.npy would be not a float array"):
        model_file.to_bytes(META, draw_weights(), {"0/exp_avg": np.ones(3, np.complex64)})
    monkeypatch.setattr(model_file, "LIBRARY_LIMITS", model_file.SERVICE_LIMITS)
    low = np.linspace(-2.0, -1.0, 30_000, dtype=np.float32)
    wide = space_to_json(spaces.Box(low, -low))
    with pytest.raises(ModelFileError, match=r"bytes of metadata; give the Boxes of its spaces fewer or equal bounds"):
        model_file.to_bytes({**META, "spaces": {**META["spaces"], "observation": wide}}, draw_weights(), {})
    many = {f"{i}/step": np.zeros((), np.float32) for i in range(1024)}
    with pytest.raises(ModelFileError, match="arrays; take fewer layers"):
        model_file.to_bytes(META, draw_weights(), many)
    with pytest.raises(ModelFileError, match="bytes of arrays; take smaller layers"):
        model_file.to_bytes(META, draw_weights(), {"0/exp_avg": np.zeros(2**25, np.float32)})


NORMALIZATION: dict[str, Any] = {
    "clip_obs": 5.0,
    "clip_reward": 10.0,
    "gamma": 0.99,
    "epsilon": 1e-8,
    "norm_obs": True,
    "norm_reward": False,
    "norm_obs_keys": None,
}
STATISTICS: Arrays = {
    "return/mean": np.array(3.5),
    "return/var": np.array(2.25),
    "return/count": np.array(100.0001),
    "obs/mean": np.array([0.1, 0.2, -0.3]),
    "obs/var": np.array([1.0, 0.5, 0.25]),
    "obs/count": np.array(100.0001),
}


def build_normalized_file() -> bytes:
    return model_file.to_bytes({**META, "normalization": NORMALIZATION}, draw_weights(), {}, STATISTICS)


def test_statistics_come_back_as_they_were_saved_and_the_actor_applies_them() -> None:
    content = model_file.from_bytes(build_normalized_file())
    assert_same_arrays(content.normalization, STATISTICS)
    assert content.meta["normalization"] == NORMALIZATION
    observations = np.random.default_rng(0).uniform(-1, 1, (8, 3)).astype(np.float32)
    normalized = ((observations - STATISTICS["obs/mean"]) / np.sqrt(STATISTICS["obs/var"] + 1e-8)).clip(-5, 5)
    plain = model_file.from_bytes(build_file()).make_actor()
    np.testing.assert_array_equal(
        content.make_actor().action_probs(observations), plain.action_probs(normalized.astype(np.float32))
    )


def test_observations_that_were_not_normalized_are_left_alone() -> None:
    settings = {**NORMALIZATION, "norm_obs": False}
    of_returns = {name: array for name, array in STATISTICS.items() if name.startswith("return/")}
    content = model_file.from_bytes(
        model_file.to_bytes({**META, "normalization": settings}, draw_weights(), {}, of_returns)
    )
    assert_same_arrays(content.normalization, of_returns)
    assert content.make_actor().normalization is None
    assert model_file.from_bytes(build_file()).make_actor().normalization is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("normalization", []),
        ("normalization", {}),
        ("normalization/clip_obs", float("1e999")),
        ("normalization/clip_obs", "10"),
        ("normalization/clip_obs", 10**400),
        ("normalization/clip_reward", True),
        ("normalization/epsilon", -1.0),
        ("normalization/gamma", None),
        ("normalization/norm_obs", 1),
        ("normalization/norm_reward", "yes"),
        ("spaces/observation", {"type": "Discrete", "n": 3}),
    ],
    ids=str,
)
def test_settings_that_are_none_of_a_vec_normalize_are_refused(path: str, value: Any) -> None:
    with pytest.raises(ModelFileError):
        model_file.from_bytes(repack(build_normalized_file(), change_meta=set_entry(path, value)))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("obs/mean", np.zeros(2)),
        ("obs/var", np.array([1.0, -1.0, 1.0])),
        ("obs/var", np.array([1.0, np.nan, 1.0])),
        ("obs/count", np.array(-1.0)),
        ("return/var", np.zeros(1)),
        ("return/count", np.array(5)),
    ],
    ids=str,
)
def test_statistics_that_are_none_are_refused(name: str, array: np.ndarray[Any, Any]) -> None:
    file = io.BytesIO()
    np.save(file, array)
    with pytest.raises(ModelFileError, match=f"normalization/{name}.npy"):
        model_file.from_bytes(repack(build_normalized_file(), {f"normalization/{name}.npy": file.getvalue()}))


def test_statistics_that_are_missing_are_named() -> None:
    statistics = {name: array for name, array in STATISTICS.items() if name != "return/var"}
    with pytest.raises(ModelFileError, match=r"lacks normalization/return/var\.npy"):
        model_file.from_bytes(
            model_file.to_bytes({**META, "normalization": NORMALIZATION}, draw_weights(), {}, statistics)
        )
