"""The model file: one zip of JSON and plain arrays. Nothing in it is ever unpickled.

Members, all stored uncompressed: ``grpo_meta.json`` (format, spaces, network, hyperparameters, provenance and the
SHA-256 of every array) and one ``<group>/<name>.npy`` per array. The groups are ``weights`` (the policy's
parameters) and ``optimizer`` (Adam's moments). Readers check sizes and shapes before they allocate.
"""

import hashlib
import io
import json
import os
import tokenize
import uuid
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.actor import ACTIVATIONS, Actor, count_inputs, count_outputs

FORMAT = "grpo-model/1"
META_MEMBER = "grpo_meta.json"
# A 4x1024 network with its two Adam moments is 76 MB; anything larger is refused before it is read.
MAX_FILE_BYTES = 128 * 2**20
MAX_META_BYTES = 2**20
MAX_MEMBERS = 256

Arrays = dict[str, npt.NDArray[Any]]


class ModelFileError(ValueError):
    """The file is damaged or not what its metadata says."""


class ForeignModelError(ModelFileError):
    """The file is a zip that this library did not write, such as another SB3 model, whose pickles are not run."""


@dataclass(frozen=True)
class ModelContent:
    """What a model file holds.

    :param meta: The JSON metadata; ``network`` and ``spaces`` are checked, the rest is as it was saved.
    :param weights: Policy parameters by torch name, float32.
    :param optimizer: Optimizer arrays by ``<parameter index>/<state name>``; empty if not read or not saved.
    """

    meta: dict[str, Any]
    weights: Arrays
    optimizer: Arrays = field(default_factory=dict)

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Observation space the policy was trained on."""
        return space_from_json(self.meta["spaces"]["observation"])

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Action space the policy was trained on."""
        return space_from_json(self.meta["spaces"]["action"])

    def make_actor(self) -> Actor:
        """Build the frozen policy."""
        activation = self.meta["network"]["activation"]
        return Actor.from_weights(self.observation_space, self.action_space, activation, self.weights)


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a Box or Discrete space in JSON; floats are hexadecimal, which is exact and can spell infinity."""
    if isinstance(space, spaces.Box):
        low, high = ([float(x).hex() for x in bound.reshape(-1)] for bound in (space.low, space.high))
        return {"type": "Box", "low": low, "high": high, "shape": list(space.shape), "dtype": str(space.dtype)}
    assert isinstance(space, spaces.Discrete), f"{space} passed the algorithm's own check"
    return {"type": "Discrete", "n": int(space.n)}


def space_from_json(described: Mapping[str, Any]) -> spaces.Space[Any]:
    """Rebuild a space from ``space_to_json``.

    :raises ModelFileError: If it describes neither a Box nor a Discrete space.
    """
    if described.get("type") == "Discrete":
        return spaces.Discrete(int(described["n"]))
    if described.get("type") == "Box":
        dtype = np.dtype(described["dtype"])
        if dtype.kind not in "fiu":
            raise ModelFileError(f"a Box of {dtype} is not a space of numbers.")
        low, high = (
            np.array([float.fromhex(x) for x in described[bound]]).astype(dtype).reshape(described["shape"])
            for bound in ("low", "high")
        )
        return spaces.Box(low, high, dtype=dtype.type)
    raise ModelFileError(f"unknown space type {described.get('type')!r}.")


def expected_shapes(meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Derive the shape of every policy parameter from the network and the spaces in the metadata."""
    n_inputs = count_inputs(space_from_json(meta["spaces"]["observation"]))
    action_space = space_from_json(meta["spaces"]["action"])
    n_outputs = count_outputs(action_space)
    shapes: dict[str, tuple[int, ...]] = {"log_std": (n_outputs,)} if isinstance(action_space, spaces.Box) else {}
    for part, hidden, output, width_out in (
        ("pi", "mlp_extractor.policy_net", "action_net", n_outputs),
        ("vf", "mlp_extractor.value_net", "value_net", 1),
    ):
        width = n_inputs
        for i, n_units in enumerate(meta["network"]["net_arch"][part]):
            shapes[f"{hidden}.{2 * i}.weight"] = (n_units, width)
            shapes[f"{hidden}.{2 * i}.bias"] = (n_units,)
            width = n_units
        shapes[f"{output}.weight"] = (width_out, width)
        shapes[f"{output}.bias"] = (width_out,)
    return shapes


def to_bytes(meta: Mapping[str, Any], weights: Mapping[str, Any], optimizer: Mapping[str, Any]) -> bytes:
    """Serialise a model.

    :param meta: JSON-serialisable metadata with ``spaces`` and ``network``; ``format`` and ``sha256`` are added.
    :param weights: Parameter name to array.
    :param optimizer: Optimizer state name to array.
    """
    members = {f"weights/{name}.npy": _to_npy(array) for name, array in weights.items()}
    members |= {f"optimizer/{name}.npy": _to_npy(array) for name, array in optimizer.items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    header = json.dumps({"format": FORMAT, **meta, "sha256": digests}, indent=1, allow_nan=False)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {META_MEMBER: header.encode(), **members}.items():
            # A fixed date keeps the bytes, and so the SHA-256 of the file, a function of the model alone.
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return file.getvalue()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that readers, and a crash at any instant, see the old content or the new, never a mixture.

    :raises OSError: If the disk refuses; the old file is untouched and nothing is left beside it.
    """
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def from_bytes(content: bytes, with_optimizer: bool = False) -> ModelContent:
    """Read a model without running anything in it.

    :param with_optimizer: Whether to read the optimizer's arrays as well.
    :raises ForeignModelError: If it is a zip without ``grpo_meta.json``.
    :raises ModelFileError: If it is damaged, oversized, or its arrays are not those its metadata calls for.
    """
    if len(content) > MAX_FILE_BYTES:
        raise ModelFileError(f"the file has {len(content)} bytes; at most {MAX_FILE_BYTES} are read.")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _check_members(archive)
            meta = _read_meta(archive, members)
            if members.keys() - {META_MEMBER} != meta["sha256"].keys():
                raise ModelFileError("the file's members are not those that were saved.")
            shapes = expected_shapes(meta)
            weights = {
                name: _read_array(archive, members, meta, f"weights/{name}.npy", shapes[name]) for name in shapes
            }
            optimizer = _read_optimizer(archive, members, meta) if with_optimizer else {}
    except ModelFileError:
        raise
    except (
        zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, OSError, EOFError, RuntimeError,
        NotImplementedError, OverflowError, ArithmeticError, tokenize.TokenError,
    ) as error:  # fmt: skip  # what zipfile, json and numpy raise on damaged input
        raise ModelFileError(f"the file is damaged ({type(error).__name__}).") from error
    return ModelContent(meta, weights, optimizer)


def _to_npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array, order="C"), allow_pickle=False)
    return file.getvalue()


def _check_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    members = {info.filename: info for info in infos}
    if META_MEMBER not in members:
        raise ForeignModelError(
            "the file was not saved by GRPO. Files of other algorithms hold pickles, which run code when loaded, "
            "so they are not opened."
        )
    if len(infos) > MAX_MEMBERS or len(members) != len(infos):
        raise ModelFileError("the file has duplicate or too many members.")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise ModelFileError("the file has compressed members; GRPO stores them uncompressed.")
    if sum(info.file_size for info in infos) > MAX_FILE_BYTES:
        raise ModelFileError("the members claim to be larger than the file may be.")
    return members


def _read_meta(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> dict[str, Any]:
    if members[META_MEMBER].file_size > MAX_META_BYTES:
        raise ModelFileError(f"{META_MEMBER} is larger than {MAX_META_BYTES} bytes.")
    meta = json.loads(archive.read(META_MEMBER))
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ModelFileError(f"the file's format is not {FORMAT}; it was saved by another version.")
    if meta["network"]["activation"] not in ACTIVATIONS:
        raise ModelFileError(f"unknown activation; known are {', '.join(ACTIVATIONS)}.")
    return meta


def _read_array(
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    meta: Mapping[str, Any],
    member: str,
    shape: tuple[int, ...] | None,
) -> npt.NDArray[Any]:
    """Read one array.

    :param shape: The shape it must have; None takes any shape that the member's size allows.
    """
    if member not in members:
        raise ModelFileError(f"the file lacks {member}.")
    content = archive.read(member)
    if hashlib.sha256(content).hexdigest() != meta["sha256"].get(member):
        raise ModelFileError(f"{member} is not the array that was saved.")
    # numpy allocates what the header claims, so a header that claims more than the member holds is refused first.
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    claimed_shape, _, dtype = read_header(file)
    if dtype.kind != "f" or (shape is not None and claimed_shape != shape):
        raise ModelFileError(f"{member} is {dtype} {claimed_shape}, not a float array of shape {shape}.")
    if int(np.prod(claimed_shape, dtype=object)) * dtype.itemsize != len(content) - file.tell():
        raise ModelFileError(f"{member} holds more or less than its header says.")
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if not np.isfinite(array).all():
        raise ModelFileError(f"{member} holds NaN or infinite numbers.")
    return np.asarray(array)


def _read_optimizer(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], meta: Mapping[str, Any]
) -> Arrays:
    prefix, suffix = "optimizer/", ".npy"
    names = [name for name in members if name.startswith(prefix) and name.endswith(suffix)]
    return {
        name.removeprefix(prefix).removesuffix(suffix): _read_array(archive, members, meta, name, None)
        for name in names
    }
