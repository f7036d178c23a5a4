"""Spaces of observations and actions."""

from pydantic import BaseModel, Field


class SpaceDescription(BaseModel):
    """A space of observations or actions; what its kind does not have is null."""

    type: str = Field(description="Its kind, such as `Box` or `Discrete`.", examples=["Box"])
    text: str = Field(description="As Gymnasium writes it.")
    shape: list[int] | None = Field(description="Of an observation or action as an array.")
    dtype: str | None = Field(description="Type of its numbers.")
    n: int | None = Field(None, description="Choices of a Discrete space, digits of a MultiBinary one.")
    nvec: list[int] | None = Field(None, description="Choices of each component of a MultiDiscrete space.")
    low: list[float | None] | None = Field(
        None,
        description="Lowest value of each number of a Box, flattened; one entry where all are the same, null where "
        "there is no bound. Null as a whole if there are more than 1,024.",
    )
    high: list[float | None] | None = Field(None, description="Highest values, likewise.")
    spaces: dict[str, "SpaceDescription"] | None = Field(None, description="The spaces of a Dict, by key.")
