"""A policy's answers to observations."""

from dataclasses import dataclass
from typing import Any

from grpo_client.answers.reading import Answer


@dataclass(frozen=True, kw_only=True)
class Prediction(Answer):
    """A policy's answer to one observation.

    :param action: An integer for Discrete actions, a list for all others.
    :param action_probs: Probability of every discrete action; None for continuous ones.
    :param value: Estimate of the discounted return from here; None where the model's card does not call it meaningful.
    """

    action: Any
    action_probs: Any
    value: float | None


@dataclass(frozen=True, kw_only=True)
class ItemError(Answer):
    """Why one observation of a batch was not answered."""

    error: str


def parse_item(body: Any) -> Prediction | ItemError:
    """Read one answer of a batch."""
    return ItemError.parse(body) if isinstance(body, dict) and "error" in body else Prediction.parse(body)
