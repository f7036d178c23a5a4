"""States to act on, and what to do in them."""

from typing import Any

from pydantic import BaseModel, Field, model_validator

from service.schemas.fields import ActionMasks, MaskBatch, ModelName, Observation, ObservationBatch, Request


class InferenceRequest(Request):
    """A state to act on."""

    model_name: ModelName = Field(description="Name of a trained model.")
    observation: Observation = Field(
        description="One observation in the shape of the model's observation space; one integer if that is Discrete, "
        "an object with an entry per key if it is a Dict.",
        examples=[[0.1, 0.0, 0.05, 0.0]],
    )
    deterministic: bool = Field(True, description="Take the most likely action instead of drawing one.")
    action_masks: ActionMasks | None = Field(
        None, description="Which actions are allowed, in one list or in one list per component. Default: all."
    )


class InferenceResponse(BaseModel):
    """What to do."""

    action: int | list[Any] = Field(description="An integer for Discrete actions, a list for all others.")
    action_probs: list[float] | list[list[float]] | None = Field(
        description="Probability of every Discrete action, a list of such per component of a MultiDiscrete action, "
        "the probability of 1 per digit of a MultiBinary action; None for Box."
    )
    value: float = Field(description="The value network's estimate of the discounted return from here.")


class BatchRequest(Request):
    """States to act on."""

    model_name: ModelName = Field(description="Name of a trained model.")
    observations: ObservationBatch = Field(
        description="Observations, each as `POST /inference` takes one.",
        examples=[[[0.1, 0.0, 0.05, 0.0], [0.0, 0.5, -0.1, -0.5]]],
    )
    deterministic: bool = Field(True, description="Take the most likely actions instead of drawing them.")
    action_masks: MaskBatch | None = Field(
        None, description="Per observation which actions are allowed, as `POST /inference` takes it, or null for all."
    )

    @model_validator(mode="after")
    def _check_masks(self) -> "BatchRequest":
        if self.action_masks is not None and len(self.action_masks) != len(self.observations):
            raise ValueError("action_masks has one entry per observation; null allows all actions")
        return self


class ItemError(BaseModel):
    """An observation that was not answered."""

    error: str = Field(description="What `POST /inference` would say.")


class BatchResponse(BaseModel):
    """What to do in each state."""

    answers: list[InferenceResponse | ItemError] = Field(description="One per observation, in their order.")
