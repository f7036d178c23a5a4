"""Answering one observation from a served model."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.spaces import Observations, UnsupportedSpaceError, count_mask_bits, is_image_space
from service.errors import InvalidRequestError
from service.model_store import ServedModel
from service.schemas import InferenceResponse


def infer(
    model: ServedModel, observation: Any, deterministic: bool, action_masks: list[Any] | None = None
) -> InferenceResponse:
    """Choose an action for one observation.

    :param observation: A number or nested lists of numbers, finite and rectangular; for a Dict, one of these per key.
    :param deterministic: Take the most likely action instead of drawing one.
    :param action_masks: Flags of the allowed actions, in one list or in one list per component; None allows all.
    :raises InvalidRequestError: If the observation or the masks do not fit the model's spaces.
    """
    actor = model.actor
    masks = None if action_masks is None else _to_masks(actor.action_space, action_masks)
    observations = _to_batch(actor.observation_space, observation)
    # The largest observations allowed overflow a sum of products, and a number that never varied may have been
    # normalised by 0; what comes of it is refused below.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        decision = actor.act(observations, deterministic, model.rng, masks)
    action, value = decision.actions[0], float(decision.values[0])
    # A MultiDiscrete action has an array of probabilities per component.
    probs = [part[0].tolist() for part in decision.probs] if isinstance(decision.probs, list) else None
    if isinstance(decision.probs, np.ndarray):
        probs = decision.probs[0].tolist()
    numbers = [value, *np.ravel(action).tolist(), *(np.hstack(probs).tolist() if probs else [])]
    if not np.isfinite(numbers).all():
        raise InvalidRequestError("the observation's numbers are too large for this model's network.")
    return InferenceResponse(action=action.tolist(), action_probs=probs, value=value)


def _to_batch(space: spaces.Space[Any], observation: Any) -> Observations:
    if not isinstance(space, spaces.Dict):
        return _to_row(space, observation)
    keys = list(space.spaces)
    if not isinstance(observation, dict) or set(observation) != set(keys):
        raise InvalidRequestError(f"this model expects an object with the keys {keys} as observation.")
    rows = {}
    for key, subspace in space.spaces.items():
        try:
            rows[key] = _to_row(subspace, observation[key])
        except InvalidRequestError as error:
            raise InvalidRequestError(f"key '{key}': {error.detail}") from error
    return rows


def _to_row(space: spaces.Space[Any], observation: Any) -> npt.NDArray[Any]:
    """Return an observation without keys as a batch of one."""
    if isinstance(observation, dict):
        raise InvalidRequestError("this model expects numbers without keys as observation.")
    if isinstance(space, spaces.Discrete):
        if not isinstance(observation, int) or not 0 <= observation < space.n:
            raise InvalidRequestError(f"this model expects one integer from 0 to {space.n - 1} as observation.")
        return np.array([observation])
    # Not float32 at once, which would take fractions of choices and round large integers.
    array = np.asarray(observation)
    if is_image_space(space) and array.ndim == 3 and array.shape != space.shape:
        array = array.transpose(2, 0, 1)  # environments mostly have the channels last, the networks first
    if array.shape != space.shape:
        raise InvalidRequestError(
            f"this model expects an observation of shape {list(space.shape or ())}, but {list(array.shape)} was given."
        )
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        n_choices = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.array(2)
        if array.dtype.kind not in "iu" or (array < 0).any() or (array >= n_choices).any():
            raise InvalidRequestError(
                f"this model expects integers from 0 to {(n_choices - 1).tolist()} as observation."
            )
        return array[None]
    return _to_numbers(space, array)[None]


def _to_numbers(space: spaces.Space[Any], array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an observation of a Box in the type that it was trained with."""
    if space.dtype is None or space.dtype.kind == "f":
        with np.errstate(over="ignore"):
            numbers = array.astype(space.dtype)
        if not np.isfinite(numbers).all():
            raise InvalidRequestError(f"the observation's numbers are too large for this model's {space.dtype}.")
        return numbers
    limits = np.iinfo(space.dtype)
    # The image of a camera that is scaled to [0, 1] would come out black.
    if array.dtype.kind not in "iu" or (array < limits.min).any() or (array > limits.max).any():
        raise InvalidRequestError(
            f"this model expects integers from {limits.min} to {limits.max} as observation; send them unscaled."
        )
    return array.astype(space.dtype)


def _to_masks(space: spaces.Space[Any], action_masks: list[Any]) -> npt.NDArray[np.bool_]:
    """Return action masks as a batch of one, ``(1, n_flags)``."""
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
            "per component; true is allowed."
        )
    if not all(map(any, components)):
        raise InvalidRequestError("action_masks allows no action: every choice must leave one open; mend the masks.")
    return np.array([flag for component in components for flag in component], np.bool_)[None]


def _list_sizes(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
