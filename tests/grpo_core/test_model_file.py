"""The model file: what goes in comes out, damage never changes a policy, and nothing in it is ever run."""

import errno
import hashlib
import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO

from grpo_core import model_file
from grpo_core.actor import Actor
from grpo_core.model_file import ForeignModelError, ModelFileError

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
        "action": {"type": "Discrete", "n": 2},
    },
    "network": {"net_arch": {"pi": [2], "vf": []}, "activation": "Tanh", "ortho_init": True, "log_std_init": 0.0},
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
    expected = Actor.from_weights(OBSERVATIONS, ACTIONS, "Tanh", draw_weights())
    observations = np.random.default_rng(2).uniform(-1, 1, (8, 3)).astype(np.float32)
    probs, expected_probs = actor.action_probs(observations), expected.action_probs(observations)
    assert probs is not None
    assert expected_probs is not None
    assert (probs == expected_probs).all()
    assert (actor.values(observations) == expected.values(observations)).all()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(7),
        spaces.Box(-np.inf, np.inf, (2, 3)),
        spaces.Box(np.array([0.1, -1e-30], np.float64), np.array([0.3, 1e300], np.float64), dtype=np.float64),
        spaces.Box(0, 255, (2, 2), np.uint8),
        spaces.Box(np.float32(-0.1), np.float32(0.1), ()),
    ],
    ids=str,
)
def test_a_space_comes_back_exactly_from_its_json(space: spaces.Space[Any]) -> None:
    described = json.loads(json.dumps(model_file.space_to_json(space), allow_nan=False))
    rebuilt = model_file.space_from_json(described)
    assert rebuilt == space
    assert rebuilt.dtype == space.dtype


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
    extra = {f"optimizer/{i}/step.npy": b"" for i in range(300)}
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
            return model_file.MAX_FILE_BYTES + 1

    with pytest.raises(ModelFileError, match=f"at most {model_file.MAX_FILE_BYTES}"):
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


def test_write_atomic_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    model_file.write_atomic(path, b"old")
    model_file.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "model.zip"
    model_file.write_atomic(path, b"old")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="No space left"):
        model_file.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
