"""Actions of a served model: for one observation, or for many in one pass."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.actor.actor import Actor, Decision
from grpo_core.actor.single import Choice
from grpo_core.spaces import Observations, UnsupportedSpaceError, count_inputs, count_mask_bits, is_image_space
from service.errors import InvalidRequestError
from service.models.served import ServedModel

# A smaller network answers in less time than it takes to start a thread.
LARGE_MODEL_BYTES = 2**20
TOO_LARGE_NUMBERS = (
    "this model's network makes no finite numbers of the observation: its numbers, or the model's weights, are too "
    "large."
)
# Numbers in the widest layer per pass: more would not fit the processor's cache and would take twice as long.
_MAX_ACTIVATIONS = 2**17


class Answer(msgspec.Struct):
    """The fields of an ``InferenceResponse``."""

    action: Any
    action_probs: list[Any] | None
    value: float | None


encode: Callable[[Answer], bytes] = msgspec.json.Encoder().encode


def infer(model: ServedModel, observation: Any, deterministic: bool, action_masks: list[Any] | None = None) -> Answer:
    """Choose an action for one observation.

    :param observation: A number or rectangular nested lists of numbers, all finite; for a Dict, one of these per key.
    :param deterministic: Take the most likely action instead of sampling one.
    :param action_masks: Flags of the allowed actions, in one list or in one list per component; None allows all.
    :raises InvalidRequestError: If the observation or the masks do not fit the model's spaces.
    """
    choice = None
    if model.single is not None and action_masks is None:
        choice = model.single.act(observation, deterministic, model.rng)
    if choice is None:
        choice = _choose(model, observation, deterministic, action_masks)
    value = None if model.value_scale is None else model.value_scale * choice.value
    return Answer(choice.action, choice.probs, value)


def _choose(model: ServedModel, observation: Any, deterministic: bool, action_masks: list[Any] | None) -> Choice:
    """Choose an action for any observation there is."""
    masks, observations = read_observation(model.actor, observation, action_masks)
    if model.single is not None:
        with _ignoring_overflows():
            features = model.actor.policy_extractor(model.actor.to_inputs(observations))
        flags = None if masks is None else masks[0].tolist()
        choice = model.single.act_on_features(features[0], deterministic, model.rng, flags)
        if choice is not None:
            return choice
    decision = _act(model, observations, deterministic, masks)
    if not _find_finite_rows(decision).all():
        raise InvalidRequestError(TOO_LARGE_NUMBERS)
    return Choice(decision.actions[0].tolist(), decision.list_probs()[0], float(decision.values[0]))


def infer_many(
    model: ServedModel, observations: Observations, deterministic: bool, masks: npt.NDArray[np.bool_] | None = None
) -> Iterator[tuple[Decision, npt.NDArray[np.bool_]]]:
    """Choose an action for each of many observations.

    :param observations: From ``to_rows`` or ``read_observation``, ``(batch_size, *observation_shape)``.
    :param masks: Flags of the allowed actions, ``(batch_size, n_flags)``; None allows all.
    :return: For some thousand rows at a time, in order: their decisions, and ``(n_rows,)`` flags that are False where a
        decision holds a number that is not finite.
    """
    n_rows = len(next(iter(observations.values()))) if isinstance(observations, dict) else len(observations)
    n_at_once = max(1, _MAX_ACTIVATIONS // _get_width(model.actor))
    for start in range(0, n_rows, n_at_once):
        rows = slice(start, start + n_at_once)
        part = {k: v[rows] for k, v in observations.items()} if isinstance(observations, dict) else observations[rows]
        decision = _act(model, part, deterministic, None if masks is None else masks[rows])
        yield decision, _find_finite_rows(decision)


def read_observation(
    actor: Actor, observation: Any, action_masks: list[Any] | None
) -> tuple[npt.NDArray[np.bool_] | None, Observations]:
    """Return action masks, ``(1, n_flags)``, and an observation, ``(1, *observation_shape)``, as batches of one.

    :raises InvalidRequestError: As ``infer`` does.
    """
    masks = None if action_masks is None else _to_masks(actor.action_space, action_masks)
    space = actor.observation_space
    if not isinstance(space, spaces.Dict):
        return masks, _to_row(space, observation)
    keys = list(space.spaces)
    if not isinstance(observation, dict) or set(observation) != set(keys):
        raise InvalidRequestError(f"this model expects an object with the keys {keys} as its observation.")
    rows = {}
    for key, subspace in space.spaces.items():
        try:
            rows[key] = _to_row(subspace, observation[key])
        except InvalidRequestError as error:
            raise InvalidRequestError(f"key '{key}': {error.detail}") from error
    return masks, rows


def _to_row(space: spaces.Space[Any], observation: Any) -> npt.NDArray[Any]:
    if isinstance(observation, dict):
        raise InvalidRequestError("this model expects numbers without keys as its observation.")
    # Not float32 yet, which would let fractions pass as choices and round large integers.
    return to_rows(space, np.asarray(observation)[None])


def to_rows(space: spaces.Space[Any], array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert observations without keys to the layout and type that the model was trained with.

    :param array: Finite numbers, ``(batch_size, *observation_shape)``; images may have their channels last.
    :raises InvalidRequestError: If they do not fit the space.
    """
    if isinstance(space, spaces.Discrete):
        if array.ndim != 1 or not _is_in_range(array, 0, space.n - 1):
            raise InvalidRequestError(f"this model expects one integer from 0 to {space.n - 1} as its observation.")
        return array
    if array.ndim == 4 and array.shape[1:] != space.shape and is_image_space(space):
        array = array.transpose(0, 3, 1, 2)  # most environments have the channels last, networks have them first
    if array.shape[1:] != space.shape:
        raise InvalidRequestError(
            f"this model expects an observation of shape {list(space.shape or ())}, but got {list(array.shape[1:])}."
        )
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        highest = space.nvec - 1 if isinstance(space, spaces.MultiDiscrete) else np.array(1)
        if not _is_in_range(array, 0, highest):
            raise InvalidRequestError(f"this model expects integers from 0 to {highest.tolist()} as its observation.")
        return array
    return _to_numbers(space, array)


def _to_numbers(space: spaces.Space[Any], array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert observations of a Box, ``(batch_size, *observation_shape)``, to its type."""
    dtype: np.dtype[Any] = np.dtype(space.dtype)
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        # A camera's image scaled to [0, 1] would become black.
        if not _is_in_range(array, limits.min, limits.max):
            raise InvalidRequestError(
                f"this model expects integers from {limits.min} to {limits.max} as its observation; do not scale them."
            )
        return array.astype(dtype)
    if dtype.itemsize >= 4:  # holds every number that the schema accepts
        return array.astype(dtype)
    with np.errstate(over="ignore"):
        numbers = array.astype(dtype)
    if not np.isfinite(numbers).all():
        raise InvalidRequestError(f"the observation's numbers are too large for this model's {dtype}.")
    return numbers


def _is_in_range(array: npt.NDArray[Any], lowest: int, highest: Any) -> bool:
    return array.dtype.kind in "iu" and bool((array >= lowest).all() and (array <= highest).all())


def _act(model: ServedModel, observations: Observations, deterministic: bool, masks: Any) -> Decision:
    with _ignoring_overflows():
        return model.actor.act(observations, deterministic, model.rng, masks)


def _ignoring_overflows() -> np.errstate:
    # The largest valid observations overflow a sum of products, and a number that never varied in training may be
    # normalised by 0. The callers refuse what is not finite.
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def _find_finite_rows(decision: Decision) -> npt.NDArray[np.bool_]:
    return decision.find_finite_choices() & np.isfinite(decision.values)


def _get_width(actor: Actor) -> int:
    """Return the size of the widest layer that an observation passes, the input included."""
    widths = [len(bias) for _, bias in actor.policy_layers + actor.value_layers]
    return max(count_inputs(actor.observation_space), *widths)


def _to_masks(space: spaces.Space[Any], action_masks: list[Any]) -> npt.NDArray[np.bool_]:
    """Convert action masks to a batch of one, ``(1, n_flags)``."""
    try:
        n_flags = count_mask_bits(space)
    except UnsupportedSpaceError as error:
        raise InvalidRequestError(f"action_masks does not fit this model: {error}") from error
    if isinstance(space, spaces.MultiDiscrete):
        sizes = [int(n) for n in space.nvec]
    else:
        sizes = [2] * (n_flags // 2) if isinstance(space, spaces.MultiBinary) else [n_flags]
    components = action_masks
    if not isinstance(action_masks[0] if action_masks else None, list):
        starts = np.cumsum([0, *sizes[:-1]])
        components = [action_masks[start : start + n] for start, n in zip(starts, sizes, strict=True)]
        components[-1] = action_masks[starts[-1] :]
    if [len(component) for component in components] != sizes:
        raise InvalidRequestError(
            f"this model expects action_masks of {n_flags} flags in one list, or of {_list_sizes(sizes)} in one list "
            "per component; true means allowed."
        )
    if not all(map(any, components)):
        raise InvalidRequestError("action_masks allows no action; allow at least one in every component.")
    return np.array([flag for component in components for flag in component], np.bool_)[None]


def _list_sizes(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
