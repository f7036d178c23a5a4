"""Errors, as problem details (RFC 9457)."""

from pydantic import BaseModel, Field


class FieldError(BaseModel):
    """An error in one field."""

    field: str = Field(
        description="Name of the field, dotted if it is nested; empty for the whole body.",
        examples=["n_step"],
    )
    message: str = Field(examples=["unknown field; did you mean n_steps?"])


class ProblemDetails(BaseModel):
    """The answer to every error (RFC 9457)."""

    type: str = Field(
        description="The kind of error, for programs: `urn:grpo:problem:` and a name that never changes.",
        examples=["urn:grpo:problem:not-found"],
    )
    title: str = Field(
        description="The kind of error, in words.", examples=["There is no such job, model or environment"]
    )
    status: int = Field(description="The HTTP status code.", examples=[404])
    detail: str = Field(
        description="What is wrong, and how to fix it.",
        examples=["there is no model 'balanse'; did you mean 'balance'?"],
    )
    instance: str = Field(
        description="The request's id, also in the header `X-Request-ID`, as a URN.",
        examples=["urn:uuid:0f8fad5b-d9cb-469f-a165-70867728950e"],
    )
    errors: list[FieldError] | None = Field(None, description="Up to ten errors, field by field; with status 422 only.")
    id: str | None = Field(None, description="The id to look for in the server's log; with status 500 only.")
