"""Observations, and the actions that answer them."""

from typing import Any

from pydantic import BaseModel, Field, model_validator

from service.schemas.fields import ActionMasks, MaskBatch, ModelReference, Observation, ObservationBatch, Request

MODEL_DESCRIPTION = "Name of a trained model; `name@3` is its third version, `name@prod` the one with that alias."


class InferenceRequest(Request):
    """An observation to act on."""

    model_name: ModelReference = Field(description=MODEL_DESCRIPTION)
    observation: Observation = Field(
        description="One observation in the shape of the model's observation space; an integer if the space is "
        "Discrete, an object with an entry per key if it is a Dict.",
        examples=[[0.1, 0.0, 0.05, 0.0]],
    )
    deterministic: bool = Field(True, description="Take the most likely action instead of sampling one.")
    action_masks: ActionMasks | None = Field(
        None, description="The allowed actions, in one list or in one list per component. Default: all."
    )


class InferenceResponse(BaseModel):
    """The action to take."""

    action: int | list[Any] = Field(description="An integer for Discrete actions, a list for all others.")
    action_probs: list[float] | list[list[float]] | None = Field(
        description="The probability of each Discrete action, a list of these per component of a MultiDiscrete action, "
        "the probability of 1 per digit of a MultiBinary action; null for Box."
    )
    value: float | None = Field(
        description="What the policy's most likely actions earn from this observation on: an estimate of the "
        "discounted return of the reward that the model was trained on. Null unless the model's `value_check` says "
        "that its values follow the returns of its episodes."
    )


class BatchRequest(Request):
    """Observations to act on."""

    model_name: ModelReference = Field(description=MODEL_DESCRIPTION)
    observations: ObservationBatch = Field(
        description="Observations, each as in `POST /inference`.",
        examples=[[[0.1, 0.0, 0.05, 0.0], [0.0, 0.5, -0.1, -0.5]]],
    )
    deterministic: bool = Field(True, description="Take the most likely actions instead of sampling them.")
    action_masks: MaskBatch | None = Field(
        None, description="For each observation the allowed actions, as in `POST /inference`, or null for all."
    )

    @model_validator(mode="after")
    def _check_masks(self) -> "BatchRequest":
        if self.action_masks is not None and len(self.action_masks) != len(self.observations):
            raise ValueError("action_masks must have one entry per observation; null allows all actions")
        return self


class ItemError(BaseModel):
    """An observation that was not answered."""

    error: str = Field(description="The `detail` with which `POST /inference` would refuse it.")


class BatchResponse(BaseModel):
    """The actions to take."""

    answers: list[InferenceResponse | ItemError] = Field(description="One per observation, in the same order.")
