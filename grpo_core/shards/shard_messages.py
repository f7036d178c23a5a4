"""The messages to the workers that play shards, and their replies.

All of it is pickled by this library's processes for each other; none of it is read from a file.
"""

import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple, NoReturn

import cloudpickle
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from grpo_core.banks.bank import Findings, SimulatorBank
from grpo_core.banks.episode_rows import SampledWriter
from grpo_core.groups.collector import GroupCollector
from grpo_core.groups.group import AnchorState, Group, GroupPlan
from grpo_core.options.rewards import Reward
from grpo_core.restoring.errors import NotBranchableError

# Makes what plays the groups; None where it cannot play them in these simulators.
MakeCollector = Callable[[SimulatorBank, spaces.Space[Any], GroupPlan], GroupCollector | None]


# With the next one, arrays would come back as views of the message's bytes, which a simulator's state must not be.
_PROTOCOL = 4
_FLOATS = (float, np.float64)


class NotSendableError(ValueError):
    """Something cannot be sent to another process."""


@dataclass(frozen=True)
class ShardSetup:
    """What every worker knows before the first rollout.

    :param envs: The environments, each with its wrappers.
    :param vec_wrappers: Kinds and attributes of the wrappers around all of them that change observations, the outermost
        first.
    :param plan: How the groups of a whole rollout are played.
    :param findings: Findings of the trainer's own bank.
    :param make_collector: Makes what plays the groups.
    :param reward_function: Function that replaces the environment's rewards; None leaves them.
    :param reward_weights: Weights of several reward functions.
    """

    envs: Sequence[gym.Env[Any, Any]]
    vec_wrappers: Sequence[tuple[type[VecEnvWrapper], dict[str, Any]]]
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    plan: GroupPlan
    findings: Findings
    make_collector: MakeCollector
    reward_function: Reward | None
    reward_weights: Sequence[float] | None


class ShardOrder(NamedTuple):
    """One shard of one rollout.

    :param env_index: The environment that it is played in.
    :param n_steps: Simulator steps, as ``GroupPlan.n_steps``.
    :param seed: Of all its random generators.
    :param anchors: Where its groups start, None for a new episode; empty for whole episodes.
    """

    env_index: int
    n_steps: int
    seed: tuple[int, int]
    anchors: Sequence[AnchorState | None]


# The keys and columns of infos that hold nothing but floats, ``(n_steps, n_keys)``, and the others, by step.
PackedInfos = tuple[tuple[str, ...], npt.NDArray[np.float64], Mapping[int, dict[str, Any]]]


class ShardSteps(NamedTuple):
    """The steps of a shard, in the order in which they were taken.

    :param places: Time, group and branch of each, ``(n_steps, 3)``; groups are counted from 0 in the shard.
    :param columns: What ``GroupRollout.gather`` returns of them, with the environment's own rewards.
    :param infos: As ``pack_infos`` returns them.
    :param groups: The groups, and what is kept of each. The anchor is left out where the order has it.
    :param rewards: What the reward functions made of the steps, ``(n_steps,)``; None without any.
    :param reward_means: The mean of each function over the steps, by name.
    """

    places: npt.NDArray[np.int32]
    columns: Mapping[str, npt.NDArray[Any]]
    infos: PackedInfos
    groups: Sequence[Group]
    rewards: npt.NDArray[np.float64] | None
    reward_means: Mapping[str, float]


class ShardFailure(NamedTuple):
    """Why a shard could not be played: an error of the environment or of a reward function.

    :param error: The error, pickled; empty if it cannot be.
    :param trace: The traceback as text.
    """

    error: bytes
    trace: str

    @classmethod
    def of(cls, error: Exception) -> "ShardFailure":
        """Describe an error."""
        trace = "".join(traceback.format_exception(error))
        try:
            return cls(cloudpickle.dumps(error.with_traceback(None)), trace)
        except Exception:  # foreign errors may hold anything
            return cls(b"", trace)

    def reraise(self) -> NoReturn:
        """Raise the error here, caused by what the worker has seen.

        :raises Exception: Always.
        """
        cause = RuntimeError(f"in a rollout worker:\n{self.trace}")
        try:
            error = unpack(self.error)
        except Exception:  # foreign errors may not be made again from their arguments
            raise RuntimeError(f"a rollout worker failed:\n{self.trace}") from None
        raise error from cause


def pack_infos(infos: Sequence[dict[str, Any]]) -> PackedInfos:
    """Lay the infos of steps out so that they travel fast: simulators tell a handful of floats in every step.

    :param infos: One per step.
    """
    keys = tuple(infos[0])
    is_plain = [tuple(info) == keys and all(type(value) in _FLOATS for value in info.values()) for info in infos]
    columns = np.full((len(infos), len(keys)), np.nan)
    plain_rows = [[*info.values()] for info, plain in zip(infos, is_plain, strict=True) if plain]
    columns[is_plain] = np.array(plain_rows, np.float64).reshape(len(plain_rows), len(keys))
    return keys, columns, {i: info for i, (info, plain) in enumerate(zip(infos, is_plain, strict=True)) if not plain}


def unpack_infos(packed: PackedInfos) -> list[dict[str, Any]]:
    """Return the infos, one per step; a float is NumPy's."""
    keys, columns, others = packed
    return [others[i] if i in others else dict(zip(keys, row, strict=True)) for i, row in enumerate(columns)]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Leaves out the files that monitors write: the trainer goes on writing them."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, ResultsWriter | SampledWriter):
            return type(None), ()
        return super().reducer_override(value)


def pack_setup(setup: ShardSetup) -> bytes:
    """Pickle what every worker knows; functions and classes of the user's script are sent along.

    :raises NotSendableError: If something in it cannot be pickled.
    """
    file = BytesIO()
    try:
        _Pickler(file, _PROTOCOL).dump(setup)
    except Exception as error:  # pickling calls foreign code
        raise _refuse("the environment or a reward function", error) from error
    return file.getvalue()


def pack(message: Any, what: str) -> bytes:
    """Pickle a message.

    :param what: Names it in the error.
    :raises NotSendableError: If something in it cannot be pickled.
    """
    with suppress(Exception):  # pickling calls foreign code
        packed = pickle.dumps(message, _PROTOCOL)
        if b"__main__" not in packed:  # a worker's __main__ is another script
            return packed
    try:  # cloudpickle, which is slower, knows more: functions without a name, classes of a script
        return bytes(cloudpickle.dumps(message, _PROTOCOL))
    except Exception as error:  # pickling calls foreign code
        raise _refuse(what, error) from error


def _refuse(what: str, error: Exception) -> NotSendableError:
    if isinstance(error, NotBranchableError):  # which knows the remedy
        return NotSendableError(f"{what} cannot be sent to rollout workers: {error}")
    return NotSendableError(
        f"{what} cannot be sent to rollout workers ({type(error).__name__}: {str(error)[:200]}); let its class hold no "
        "locks, open files or sockets, or derive it from gymnasium.utils.EzPickle, which makes it anew from its "
        "arguments. n_rollout_workers=1 and n_rollout_shards=1 send nothing."
    )


class _Unpickler(pickle.Unpickler):
    """Leaves the classes that are here already as they are.

    Cloudpickle sends a script's classes along, and where they arrive it would write them over those of the same
    identity: over the user's own, whose methods would then read copies of the script's variables.
    """

    def __init__(self, message: bytes) -> None:
        super().__init__(BytesIO(message))
        self._made: set[type] = set()

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if name in ("_make_skeleton_class", "_make_skeleton_enum"):
            return partial(self._make, found)
        return partial(self._fill, found) if name == "_class_setstate" else found

    def _make(self, make: Callable[..., type], *arguments: Any) -> type:
        *_, tracker_id, _ = arguments
        is_new = tracker_id not in cloudpickle.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
        made = make(*arguments)
        if is_new:
            self._made.add(made)
        return made

    def _fill(self, fill: Callable[[type, Any], type], filled: type, attributes: Any) -> type:
        return fill(filled, attributes) if filled in self._made else filled


def unpack(message: bytes) -> Any:
    """Read a message that another process of this training has packed; classes that are known stay as they are."""
    return _Unpickler(
        message
    ).load()  # between processes of one training, over sockets or Ray that nobody else writes to


def unpack_setup(message: bytes) -> Any:
    """Read a packed ``ShardSetup`` in a worker, whose classes of the user's script become those that are sent."""
    return pickle.loads(message)  # the training that started this worker has packed it, and nobody else writes to it
