"""Observation and action spaces."""

from pydantic import BaseModel, Field


class SpaceDescription(BaseModel):
    """An observation or action space; fields that its type lacks are null."""

    type: str = Field(description="The type of space, such as `Box` or `Discrete`.", examples=["Box"])
    text: str = Field(description="The space as Gymnasium prints it.")
    shape: list[int] | None = Field(description="Shape of an observation or action as an array.")
    dtype: str | None = Field(description="Type of its numbers.")
    n: int | None = Field(None, description="Number of choices of a Discrete space, or of digits of a MultiBinary one.")
    nvec: list[int] | None = Field(None, description="Number of choices of each component of a MultiDiscrete space.")
    low: list[float | None] | None = Field(
        None,
        description="Lower bound of each number of a Box, flattened; one entry if all are equal, null where there is "
        "no bound. The whole list is null if it would hold more than 1,024.",
    )
    high: list[float | None] | None = Field(None, description="Upper bounds, likewise.")
    spaces: dict[str, "SpaceDescription"] | None = Field(None, description="The spaces of a Dict, by key.")
