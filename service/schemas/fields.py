"""What several requests share: names, observations, and how unknown fields are refused."""

import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from service.suggestions import list_close

ENV_NAME_PATTERN = r"^[A-Za-z0-9_./-]+$"
MAX_ENV_NAME_CHARS = 128
_REWARD_NAME_PATTERN = r"^[A-Za-z0-9_.-]+$"
MAX_OBSERVATION_NUMBERS = 65_536
MAX_BATCH_ITEMS = 65_536
_MAX_OBSERVATION_DEPTH = 4
_MAX_MASK_FLAGS = 65_536
_MAX_FIELDS = 64
FLOAT32_MAX = float(np.finfo(np.float32).max)
_TOO_MANY_NUMBERS = f"an observation has at most {MAX_OBSERVATION_NUMBERS} numbers"
NOT_FINITE = "an observation holds finite numbers within the range of a 32-bit float"
MAX_SEED = 2**32 - 1
# Some simulators take no larger seed.
MAX_PLAY_SEED = 2**31 - 1
MAX_FILM_STEPS = 5000

# No separator, no leading dot, no trailing dot: a name that matches can be used as a file name as it is.
MODEL_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?$"
_MODEL_NAME = re.compile(MODEL_NAME_PATTERN)
# Windows opens these devices whatever follows the first dot, so a models folder copied there would break.
_DEVICE_NAMES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}
)


def is_model_name(name: str) -> bool:
    """Tell whether a string may name a model."""
    return bool(_MODEL_NAME.fullmatch(name)) and name.split(".")[0].casefold() not in _DEVICE_NAMES


def _check_model_name(name: str) -> str:
    if not is_model_name(name):
        raise ValueError("this name is reserved by some operating systems; pick another")
    return name


def _check_observation(value: Any) -> Any:
    """Accept a finite number, rectangular nested lists of them, or an object of these.

    :raises ValueError: With the rule that is broken.
    """
    parts = list(value.values()) if isinstance(value, dict) else [value]
    if not parts:
        raise ValueError("an observation has at least one key, or none at all")
    if len(parts) > MAX_OBSERVATION_NUMBERS:
        raise ValueError(_TOO_MANY_NUMBERS)
    if sum(math.prod(_measure_observation(part, _MAX_OBSERVATION_DEPTH)) for part in parts) > MAX_OBSERVATION_NUMBERS:
        raise ValueError(_TOO_MANY_NUMBERS)
    return value


def _measure_observation(value: Any, depth_left: int) -> tuple[int, ...]:
    if isinstance(value, list):
        if len(value) > MAX_OBSERVATION_NUMBERS:
            raise ValueError(_TOO_MANY_NUMBERS)
        if depth_left == 0:
            raise ValueError(f"an observation is nested at most {_MAX_OBSERVATION_DEPTH} deep")
        # A row of an image is judged at once: one call per number would keep other requests waiting.
        if set(map(type, value)) <= {int, float}:
            if not all(map(FLOAT32_MAX.__ge__, map(abs, value))):  # as below
                raise ValueError(NOT_FINITE)
            return (len(value),)
        shapes = {_measure_observation(item, depth_left - 1) for item in value}
        if len(shapes) > 1:
            raise ValueError("the lists of an observation must all have the same length and depth")
        return (len(value), *shapes.pop())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("an observation holds numbers only")
    if not -FLOAT32_MAX <= value <= FLOAT32_MAX:  # exact for integers of any length, and false for NaN
        raise ValueError(NOT_FINITE)
    return ()


def _check_action_masks(value: Any) -> Any:
    """Accept flags in one list, or in one list per component.

    :raises ValueError: With the rule that is broken.
    """
    if not isinstance(value, list):
        raise ValueError("action_masks is a list")
    lists = value if value and all(isinstance(part, list) for part in value) else [value]
    if sum(map(len, lists)) > _MAX_MASK_FLAGS or len(lists) > _MAX_MASK_FLAGS:
        raise ValueError(f"action_masks has at most {_MAX_MASK_FLAGS} flags")
    if not all(isinstance(flag, bool) or (type(flag) is int and flag in (0, 1)) for part in lists for flag in part):
        raise ValueError("action_masks holds true and false, or 1 and 0, in one list or in one list per component")
    return value


ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN, max_length=100), AfterValidator(_check_model_name)]
_OBSERVATION_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number"}, {"type": "array", "items": {}}, {"type": "object"}]
}
Observation = Annotated[Any, PlainValidator(_check_observation), WithJsonSchema(_OBSERVATION_SCHEMA)]
_FLAG_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 1}]}
_MASKS_SCHEMA = {"type": "array", "items": {"anyOf": [_FLAG_SCHEMA, {"type": "array", "items": _FLAG_SCHEMA}]}}
ActionMasks = Annotated[Any, PlainValidator(_check_action_masks), WithJsonSchema(_MASKS_SCHEMA)]
# Items are checked one by one, so that one that is wrong leaves the others answered.
ObservationBatch = Annotated[
    list[Any],
    Field(min_length=1),
    WithJsonSchema({"type": "array", "items": _OBSERVATION_SCHEMA, "minItems": 1, "maxItems": MAX_BATCH_ITEMS}),
]
MaskBatch = Annotated[
    list[Any], WithJsonSchema({"type": "array", "items": {"anyOf": [_MASKS_SCHEMA, {"type": "null"}]}, "minItems": 1})
]
RewardName = Annotated[str, Field(min_length=1, max_length=64, pattern=_REWARD_NAME_PATTERN)]
EnvName = Annotated[str, Field(min_length=1, max_length=MAX_ENV_NAME_CHARS, pattern=ENV_NAME_PATTERN)]
LayerSize = Annotated[int, Field(ge=1, le=1024)]


def name_known_fields(error: ValidationError, known: Iterable[str]) -> ValidationError:
    """Say of every unknown field which of the known ones it resembles.

    :param known: The fields of the request itself; those of objects in it are not looked at.
    """
    violations = error.errors(include_url=False)
    if not any(violation["type"] == "extra_forbidden" for violation in violations):
        return error
    return ValidationError.from_exception_data(
        error.title,
        [
            InitErrorDetails(type=_describe_type(violation, known), loc=violation["loc"], input=violation["input"])
            for violation in violations
        ],
    )


def _describe_type(violation: ErrorDetails, known: Iterable[str]) -> PydanticCustomError:
    message = violation["msg"]
    if violation["type"] == "extra_forbidden":
        message = "unknown field"
        if len(violation["loc"]) == 1 and (close := list_close(str(violation["loc"][0]), known, n_most=1)):
            message = f"unknown field; did you mean {close[0]}?"
    # The message is a template, in which only what the context names is filled in.
    return PydanticCustomError(violation["type"], message, violation.get("ctx"))


class Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _check_field_names(cls, body: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        # Else every unknown field of a large body would get an error of its own, which takes a second to make.
        if isinstance(body, dict) and len(body) > _MAX_FIELDS:
            raise ValueError(f"a request has at most {_MAX_FIELDS} fields")
        try:
            return build(body)
        except ValidationError as error:
            raise name_known_fields(error, cls.model_fields) from error
