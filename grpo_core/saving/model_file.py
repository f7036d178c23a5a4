"""The model file: one zip of JSON and plain arrays. Nothing in it is ever unpickled.

Members, all stored uncompressed: ``grpo_meta.json`` (format, spaces, network, hyperparameters, provenance and the
SHA-256 of every array) and one ``<group>/<name>.npy`` per array. The groups are ``weights`` (the policy's
parameters), ``optimizer`` (such as Adam's moments) and, where a ``VecNormalize`` was in use, ``normalization`` (its
statistics). Readers check sizes and shapes before they allocate.
"""

import hashlib
import io
import json
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.actor.actor import ACTIVATIONS, Actor
from grpo_core.actor.extractors import ExtractorPlan, count_features, list_shapes
from grpo_core.actor.normalization import ObservationStatistics
from grpo_core.npy import read_head, to_npy
from grpo_core.saving.errors import ForeignModelError, ModelFileError, OwnPartsError
from grpo_core.saving.space_json import space_from_json
from grpo_core.spaces import FLOAT32_MAX, count_outputs

__all__ = [
    "CHECKPOINT_MEMBER",
    "FORMAT",
    "LIBRARY_LIMITS",
    "META_MEMBER",
    "N_HEAD_BYTES",
    "N_TAIL_BYTES",
    "SERVICE_LIMITS",
    "Arrays",
    "ForeignModelError",
    "Limits",
    "ModelContent",
    "ModelFileError",
    "OwnPartsError",
    "expected_shapes",
    "from_bytes",
    "has_intact_ends",
    "normalization_shapes",
    "to_bytes",
]

FORMAT = "grpo-model/1"
META_MEMBER = "grpo_meta.json"
# Of a training's checkpoint, which is no model file but has its suffix.
CHECKPOINT_MEMBER = "checkpoint.json"
#: Every JSON reader represents integers up to here exactly.
MAX_INTEGER = 2**53
# At most what a zip's two headers of a member take, its name included.
_MEMBER_OVERHEAD_BYTES = 1024
# A zip begins with its first member's header and name, and ends in a record that tells where its directory is.
N_HEAD_BYTES = 30 + len(META_MEMBER)
N_TAIL_BYTES = 22
# Read by zipfile before members can be counted: their list, and where it stands if there is a great number.
_DIRECTORY_END, _LARGE_DIRECTORY_END = b"PK\x05\x06", b"PK\x06\x07"
_N_LARGE_END_BYTES = 20
_MAX_COMMENT_BYTES = 2**16

Arrays = dict[str, npt.NDArray[Any]]


class Limits(NamedTuple):
    """How large a model file may be; a larger one is refused before it is read.

    :param file_bytes: Of the whole file.
    :param meta_bytes: Of its metadata.
    :param n_members: Metadata and arrays.
    """

    file_bytes: int
    meta_bytes: int
    n_members: int

    @property
    def array_bytes(self) -> int:
        """The bytes left for arrays, NumPy's headers included."""
        return self.file_bytes - self.meta_bytes - self.n_members * _MEMBER_OVERHEAD_BYTES


# Limits of a server, whose files may come from anywhere. A 4x1024 network with its two Adam moments is 76 MB, NatureCNN
# on 84x84 images 20 MB, or 40 MB where the value network has its own. Convolutions take 8 arrays per image, 4 times
# that with Adam, twice that if the value network has its own.
SERVICE_LIMITS = Limits(128 * 2**20, 2**20, 1024)
# Limits of saving, and of reading in a script. A larger zip would have a form of its own, which no reader here takes.
LIBRARY_LIMITS = Limits(2**31 - 1, 2**24, 2**14)


@dataclass(frozen=True)
class ModelContent:
    """The content of a model file.

    :param meta: The JSON metadata; ``network`` and ``spaces`` are checked, the rest is as it was saved.
    :param weights: Policy parameters by torch name, float32.
    :param optimizer: Optimizer arrays by ``<parameter index>/<state name>``; empty if not read or not saved.
    :param normalization: Statistics of a ``VecNormalize``, float64, by the names of ``normalization_shapes``; empty
        if none was in use. Its settings are in ``meta["normalization"]``.
    """

    meta: dict[str, Any]
    weights: Arrays
    optimizer: Arrays = field(default_factory=dict)
    normalization: Arrays = field(default_factory=dict)

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Observation space the policy was trained on."""
        return space_from_json(self.meta["spaces"]["observation"])

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Action space the policy was trained on."""
        return space_from_json(self.meta["spaces"]["action"])

    def make_actor(self) -> Actor:
        """Build the frozen policy; it takes observations as the environment returns them.

        :raises ModelFileError: If the metadata describes none, whatever it may say.
        """
        try:
            return Actor.from_weights(
                self.observation_space,
                self.action_space,
                self.meta["network"],
                self.weights,
                self.get_observation_statistics(),
            )
        except ModelFileError:
            raise
        except Exception as error:  # the content is foreign, and may be wrong in every way that its readers can fail
            raise ModelFileError(f"the file describes no policy ({type(error).__name__}).") from error

    def get_observation_statistics(self) -> ObservationStatistics | None:
        """Return what observations are normalised with; None if they are not."""
        settings = self.meta.get("normalization")
        if settings is None or not settings["norm_obs"]:
            return None
        moments: dict[str, Any] = {}
        for name in ("mean", "var"):
            by_key = {key: self.normalization[f"{_join('obs', key)}/{name}"] for key in _list_normalized(self.meta)}
            moments[name] = by_key.get(None, by_key)
        return ObservationStatistics(**moments, clip_obs=float(settings["clip_obs"]), epsilon=settings["epsilon"])


def expected_shapes(meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Derive the shape of every policy parameter from the network and the spaces in the metadata."""
    observation_space = space_from_json(meta["spaces"]["observation"])
    action_space = space_from_json(meta["spaces"]["action"])
    plan = ExtractorPlan.from_json(meta["network"])
    n_outputs = count_outputs(action_space)
    shapes: dict[str, tuple[int, ...]] = {"log_std": (n_outputs,)} if isinstance(action_space, spaces.Box) else {}
    for prefix in ("features_extractor",) if plan.is_shared else ("features_extractor", "vf_features_extractor"):
        shapes |= list_shapes(observation_space, plan, prefix)
    for part, hidden, output, width_out in (
        ("pi", "mlp_extractor.policy_net", "action_net", n_outputs),
        ("vf", "mlp_extractor.value_net", "value_net", 1),
    ):
        width = count_features(observation_space, plan)
        for i, n_units in enumerate(meta["network"]["net_arch"][part]):
            shapes[f"{hidden}.{2 * i}.weight"] = (n_units, width)
            shapes[f"{hidden}.{2 * i}.bias"] = (n_units,)
            width = n_units
        shapes[f"{output}.weight"] = (width_out, width)
        shapes[f"{output}.bias"] = (width_out,)
    return shapes


def normalization_shapes(meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Derive the shape of every array of a ``VecNormalize`` from its settings and the spaces in the metadata.

    The arrays are ``return/mean``, ``return/var``, ``return/count`` and the same for ``obs``, or for ``obs/<key>`` of
    each normalised key of a Dict. Empty where no ``VecNormalize`` was in use.

    :raises ModelFileError: If the settings are not those of a ``VecNormalize`` around these spaces.
    """
    settings = meta.get("normalization")
    if settings is None:
        return {}
    for name in ("clip_obs", "clip_reward", "gamma", "epsilon"):
        if settings[name] == "inf" and name.startswith("clip_"):
            continue
        if type(settings[name]) not in (int, float) or not 0 <= float(settings[name]) < math.inf:
            raise ModelFileError(f"the normalisation's {name} is no finite number of at least 0.")
    flags = settings["norm_obs"], settings["norm_reward"], settings.get("training", True)
    if not all(isinstance(flag, bool) for flag in flags):
        raise ModelFileError("the normalisation's norm_obs, norm_reward and training are not all true or false.")
    moments: dict[str, tuple[int, ...]] = {"return": ()}
    space = space_from_json(meta["spaces"]["observation"])
    for key in _list_normalized(meta):
        box = space.spaces[key] if isinstance(space, spaces.Dict) else space
        if not isinstance(box, spaces.Box):
            raise ModelFileError(f"observations of {box} cannot have been normalised.")
        moments[_join("obs", key)] = box.shape
    return {
        f"{source}/{name}": () if name == "count" else shape
        for source, shape in moments.items()
        for name in ("mean", "var", "count")
    }


def _list_normalized(meta: Mapping[str, Any]) -> list[Any]:
    """List the keys of normalised observations; None stands for observations without keys."""
    settings = meta["normalization"]
    if not settings["norm_obs"]:
        return []
    return list(settings["norm_obs_keys"]) if meta["spaces"]["observation"]["type"] == "Dict" else [None]


def _join(source: str, key: str | None) -> str:
    return source if key is None else f"{source}/{key}"


def read_count(claimed: Any) -> int | None:
    """Return a count that a file's metadata claims, such as its ``num_timesteps``; None if it cannot be one."""
    return claimed if type(claimed) is int and 0 <= claimed <= MAX_INTEGER else None


def to_bytes(
    meta: Mapping[str, Any],
    weights: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    normalization: Mapping[str, Any] | None = None,
) -> bytes:
    """Serialise a model.

    :param meta: JSON-serialisable metadata with ``spaces`` and ``network``; ``format`` and ``sha256`` are added.
    :param weights: Parameter name to array.
    :param optimizer: Optimizer state name to array.
    :param normalization: Arrays that ``normalization_shapes(meta)`` names.
    :raises ModelFileError: If it would not be read again, as one that is beyond ``LIBRARY_LIMITS``.
    """
    groups = {"weights": weights, "optimizer": optimizer, "normalization": normalization or {}}
    members = {
        f"{group}/{name}.npy": to_npy(np.asarray(array, order="C"))
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }
    if unread := [name for name, content in members.items() if read_head(content) is None]:
        raise ModelFileError(f"{unread[0]} would be not a float array, nor any other that is read again.")
    if not meta["network"].get("own_parts"):
        for name, array in weights.items():
            _check_weight(f"weights/{name}.npy", np.asarray(array))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    header = json.dumps({"format": FORMAT, **meta, "sha256": digests}, indent=1, allow_nan=False)
    _check_saveable(len(header), len(members), sum(map(len, members.values())))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {META_MEMBER: header.encode(), **members}.items():
            # A fixed date keeps the bytes, and so the SHA-256 of the file, a function of the model alone.
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    return file.getvalue()


def _check_saveable(n_meta_bytes: int, n_arrays: int, n_array_bytes: int) -> None:
    limits = LIBRARY_LIMITS
    for n, most, what in (
        (n_meta_bytes, limits.meta_bytes, "bytes of metadata; give the Boxes of its spaces fewer or equal bounds"),
        (n_arrays, limits.n_members - 1, "arrays; take fewer layers or images"),
        (n_array_bytes, limits.array_bytes, "bytes of arrays; take smaller layers"),
    ):
        if n > most:
            raise ModelFileError(f"the model has {n} {what}. At most {most} are read again.")


def has_intact_ends(head: bytes, tail: bytes, n_bytes: int) -> bool:
    """Tell by its two ends alone whether ``to_bytes`` may have written a file: quick enough to list many.

    It is False for other programs' zips and for files that were cut. ``from_bytes`` checks what lies between the ends.

    :param head: The first ``N_HEAD_BYTES`` of the file.
    :param tail: The last ``N_TAIL_BYTES``.
    :param n_bytes: Size of the file.
    """
    if len(tail) < N_TAIL_BYTES or not head.startswith(b"PK\x03\x04") or not head.endswith(META_MEMBER.encode()):
        return False
    signature, n_directory_bytes, directory_offset = struct.unpack("<4s8xIIxx", tail)
    return bool(signature == b"PK\x05\x06" and directory_offset + n_directory_bytes + N_TAIL_BYTES == n_bytes)


def from_bytes(
    content: bytes,
    with_optimizer: bool = False,
    with_own_parts: bool = False,
    limits: Limits = SERVICE_LIMITS,
) -> ModelContent:
    """Read a model without running anything in it.

    :param with_optimizer: Whether to read the optimizer's arrays as well.
    :param with_own_parts: Whether to read a policy with parts that the file only names; there is no ``Actor`` of it.
    :param limits: How large it may be.
    :raises OwnPartsError: If its policy has such parts and they are not asked for.
    :raises ForeignModelError: If it is a zip without ``grpo_meta.json``.
    :raises ModelFileError: If it is damaged, oversized, or its arrays are not those its metadata calls for.
    """
    if len(content) > limits.file_bytes:
        raise ModelFileError(f"the file has {len(content)} bytes; at most {limits.file_bytes} are read.")
    _check_directory(content, limits)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = _check_members(archive, limits)
            meta = _read_meta(archive, members, limits)
            if members.keys() - {META_MEMBER} != meta["sha256"].keys():
                raise ModelFileError("the file's members are not those that were saved.")
            own_parts = meta["network"].get("own_parts")
            if own_parts and not with_own_parts:
                raise OwnPartsError(_describe_own_parts(own_parts))
            weights = (_read_own_weights if own_parts else _read_weights)(archive, members, meta)
            optimizer = _read_optimizer(archive, members, meta) if with_optimizer else {}
            normalization = _read_normalization(archive, members, meta)
    except ModelFileError:
        raise
    except Exception as error:  # the content is foreign, and may be wrong in every way that its readers can fail
        raise ModelFileError(f"the file is damaged ({type(error).__name__}).") from error
    return ModelContent(meta, weights, optimizer, normalization)


def _check_directory(content: bytes, limits: Limits) -> None:
    """Count the members by the end of the zip's directory, before zipfile reads it.

    :raises ModelFileError: If it lists too many, or in the form for large zips, which would take long to read.
    """
    end = content.rfind(_DIRECTORY_END, -N_TAIL_BYTES - _MAX_COMMENT_BYTES)
    if end < 0 or len(content) - end < N_TAIL_BYTES:
        raise ModelFileError("the file is damaged, or no model file: it does not end as a zip does.")
    n_members, n_directory_bytes = struct.unpack_from("<HI", content, end + 10)
    if n_members > limits.n_members or n_directory_bytes > limits.n_members * _MEMBER_OVERHEAD_BYTES:
        raise ModelFileError(f"the file has too many members: {n_members}; at most {limits.n_members} are read.")
    if content[max(0, end - _N_LARGE_END_BYTES) : end].startswith(_LARGE_DIRECTORY_END):
        raise ModelFileError("the file's directory has the form for large zips, which no model needs.")


def _check_members(archive: zipfile.ZipFile, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    members = {info.filename: info for info in infos}
    if CHECKPOINT_MEMBER in members:
        raise ModelFileError(
            "the file is a training checkpoint, not a model; resume it with resume_training(model, path)."
        )
    if META_MEMBER not in members:
        raise ForeignModelError(
            "the file was not saved by GRPO. Files of other algorithms hold pickles, which run code when loaded, "
            "so they are not opened."
        )
    if len(infos) > limits.n_members or len(members) != len(infos):
        raise ModelFileError("the file has duplicate or too many members.")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise ModelFileError("the file has compressed members; GRPO stores them uncompressed.")
    if sum(info.file_size for info in infos) > limits.file_bytes:
        raise ModelFileError("the members claim to be larger than the file may be.")
    return members


def _read_meta(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], limits: Limits) -> dict[str, Any]:
    if members[META_MEMBER].file_size > limits.meta_bytes:
        raise ModelFileError(f"{META_MEMBER} is larger than {limits.meta_bytes} bytes.")
    meta = json.loads(archive.read(META_MEMBER))
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ModelFileError(f"the file's format is not {FORMAT}; it was saved by another version.")
    if not meta["network"].get("own_parts") and meta["network"]["activation"] not in ACTIVATIONS:
        raise ModelFileError(f"unknown activation; known are {', '.join(ACTIVATIONS)}.")
    return meta


def _read_array(
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    meta: Mapping[str, Any],
    member: str,
    shape: tuple[int, ...] | None,
    kinds: str = "f",
) -> npt.NDArray[Any]:
    """Read one array.

    :param shape: The shape it must have; None takes any shape that the member's size allows.
    :param kinds: Kinds of NumPy's dtypes that it may have.
    """
    if member not in members:
        raise ModelFileError(f"the file lacks {member}.")
    content = archive.read(member)
    if hashlib.sha256(content).hexdigest() != meta["sha256"].get(member):
        raise ModelFileError(f"{member} is not the array that was saved.")
    head = read_head(content)
    if head is None:
        raise ModelFileError(f"{member} is not a float array, nor any other that is read: of objects, or damaged.")
    if head.dtype.kind not in kinds or (shape is not None and head.shape != shape):
        raise ModelFileError(f"{member} is {head.dtype} {head.shape}, not a float array of shape {shape}.")
    if head.n_bytes != len(content):
        raise ModelFileError(f"{member} holds more or less than its header says.")
    return head.view(content).astype(head.dtype.newbyteorder("="), order="C")  # torch takes this machine's alone


def _check_finite(member: str, array: npt.NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        raise ModelFileError(f"{member} holds NaN or infinite numbers.")


def _check_weight(member: str, array: npt.NDArray[Any]) -> None:
    _check_finite(member, array)
    if (np.abs(array) > FLOAT32_MAX).any():  # a policy computes in these
        raise ModelFileError(f"{member} holds numbers too large for a 32-bit float.")


def _describe_own_parts(own_parts: Mapping[str, Any]) -> str:
    names = ", ".join(f"{part}={name}" for part, name in own_parts.items())
    return (
        f"the model's policy has layers of its author's own ({names[:200]}), and a model file holds no code. Load it "
        "in Python, with GRPO.load(path, ...) and these parts, or train one with the layers of MlpPolicy, CnnPolicy or "
        "MultiInputPolicy."
    )


def _read_weights(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], meta: Mapping[str, Any]) -> Arrays:
    weights: Arrays = {}
    for name, shape in expected_shapes(meta).items():
        member = f"weights/{name}.npy"
        weights[name] = _read_array(archive, members, meta, member, shape)
        _check_weight(member, weights[name])
    return weights


def _read_own_weights(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], meta: Mapping[str, Any]
) -> Arrays:
    """Read whatever weights there are: only the policy that they are put into knows which there have to be.

    Masks among them may well be infinite.
    """
    names = _list_group(members, "weights")
    return {name: _read_array(archive, members, meta, f"weights/{name}.npy", None, kinds="fiub") for name in names}


def _list_group(members: Mapping[str, zipfile.ZipInfo], group: str) -> list[str]:
    prefix, suffix = f"{group}/", ".npy"
    return [
        name.removeprefix(prefix).removesuffix(suffix)
        for name in members
        if name.startswith(prefix) and name.endswith(suffix)
    ]


def _read_optimizer(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], meta: Mapping[str, Any]
) -> Arrays:
    return {
        name: _read_array(archive, members, meta, f"optimizer/{name}.npy", None, kinds="fiub")
        for name in _list_group(members, "optimizer")
    }


def _read_normalization(
    archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], meta: Mapping[str, Any]
) -> Arrays:
    arrays: Arrays = {}
    for name, shape in normalization_shapes(meta).items():
        array = _read_array(archive, members, meta, f"normalization/{name}.npy", shape)
        _check_finite(f"normalization/{name}.npy", array)
        if not name.endswith("/mean") and (array < 0).any():
            raise ModelFileError(f"normalization/{name}.npy holds negative numbers.")
        arrays[name] = array.astype(np.float64, copy=False)
    return arrays
