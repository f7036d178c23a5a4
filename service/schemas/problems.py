"""Errors: RFC 9457."""

from pydantic import BaseModel, Field


class FieldError(BaseModel):
    """What is wrong with a field."""

    field: str = Field(
        description="Its name, with dots where it is inside of another; empty for the whole body.",
        examples=["n_step"],
    )
    message: str = Field(examples=["unknown field; did you mean n_steps?"])


class ProblemDetails(BaseModel):
    """Every error: RFC 9457."""

    type: str = Field(
        description="The kind of error, for programs: `urn:grpo:problem:` and a name that stays.",
        examples=["urn:grpo:problem:not-found"],
    )
    title: str = Field(
        description="The kind of error, in words.", examples=["There is no such job, model or environment"]
    )
    status: int = Field(description="The HTTP status, once more.", examples=[404])
    detail: str = Field(
        description="What is wrong, and the remedy if there is one.",
        examples=["there is no model 'balanse'; did you mean 'balance'?"],
    )
    instance: str = Field(
        description="The request's id, as in the header `X-Request-ID`, as a URN.",
        examples=["urn:uuid:0f8fad5b-d9cb-469f-a165-70867728950e"],
    )
    errors: list[FieldError] | None = Field(None, description="Field by field, at most ten, with status 422 only.")
    id: str | None = Field(None, description="What to look for in the server's log, with status 500 only.")
