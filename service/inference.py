"""Answering one observation from a served model."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from service.errors import InvalidRequestError
from service.model_store import ServedModel
from service.schemas import InferenceResponse


def infer(model: ServedModel, observation: Any, deterministic: bool) -> InferenceResponse:
    """Choose an action for one observation.

    :param observation: A number or nested lists of numbers, finite and rectangular.
    :param deterministic: Take the most likely action instead of drawing one.
    :raises InvalidRequestError: If the observation does not fit the model's observation space.
    """
    actor = model.actor
    observations = _to_batch(actor.observation_space, observation)
    # The largest observations allowed overflow a sum of products; what comes of it is refused below.
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(actor.values(observations)[0])
        probs = actor.action_probs(observations)
        actions = (
            actor.best_actions(observations) if deterministic else actor.sample_actions(observations, model.rng)[0]
        )
    action = actor.clip_actions(actions)[0]
    if not (np.isfinite(value) and np.isfinite(action).all() and (probs is None or np.isfinite(probs).all())):
        raise InvalidRequestError("the observation's numbers are too large for this model's network.")
    return InferenceResponse(
        action=action.tolist(), action_probs=None if probs is None else probs[0].tolist(), value=value
    )


def _to_batch(space: spaces.Space[Any], observation: Any) -> npt.NDArray[Any]:
    if isinstance(space, spaces.Discrete):
        if not isinstance(observation, int) or not 0 <= observation < space.n:
            raise InvalidRequestError(f"this model expects one integer from 0 to {space.n - 1} as observation.")
        return np.array([observation])
    array = np.asarray(observation, dtype=np.float32)
    if array.shape != space.shape:
        raise InvalidRequestError(
            f"this model expects an observation of shape {list(space.shape or ())}, but {list(array.shape)} was given."
        )
    return array[None]
