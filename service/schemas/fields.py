"""Field types that requests share: names, observations and masks; and hints for unknown fields."""

import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

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

from grpo_core.environments.env_kwargs import check_env_kwargs
from grpo_core.environments.wrappers import MAX_WRAPPERS, WRAPPERS, parse_wrappers
from grpo_core.spaces import FLOAT32_MAX
from grpo_core.suggestions import suggest

ENV_NAME_PATTERN = r"^[A-Za-z0-9_./-]+$"
MAX_ENV_NAME_CHARS = 128
REWARD_NAME_PATTERN = r"^[A-Za-z0-9_.-]+$"
MAX_OBSERVATION_NUMBERS = 65_536
MAX_BATCH_ITEMS = 65_536
_MAX_OBSERVATION_DEPTH = 4
_MAX_MASK_FLAGS = 65_536
_MAX_FIELDS = 64
_NUMBERS = frozenset({int, float})
_TOO_MANY_NUMBERS = f"an observation may hold at most {MAX_OBSERVATION_NUMBERS} numbers"
NOT_FINITE = "an observation must hold finite numbers within the range of a 32-bit float"
MAX_SEED = 2**32 - 1
# Some simulators accept no larger seed.
MAX_PLAY_SEED = 2**31 - 1
MAX_FILM_STEPS = 5000

# No separator, no leading or trailing dot: a matching name can serve as a file name unchanged.
MODEL_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?$"
_MODEL_NAME = re.compile(MODEL_NAME_PATTERN)
# Of a name that the server makes; what it adds has the rest of the 100 characters.
MAX_NAME_STEM_CHARS = 80
# An alias is no number and differs from "latest", which always is the newest version.
ALIAS_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]{0,31}$"
LATEST_ALIAS = "latest"
# Lists of tags are written with commas.
TAG_PATTERN = r"^[^,]*$"
# On Windows these name devices, whatever follows the first dot, so a models folder copied there would break.
_DEVICE_NAMES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}
)


def is_model_name(name: str) -> bool:
    """Return whether a string is a valid model name."""
    return bool(_MODEL_NAME.fullmatch(name)) and name.split(".")[0].casefold() not in _DEVICE_NAMES


def _check_model_name(name: str) -> str:
    if not is_model_name(name):
        raise ValueError("this name is reserved by some operating systems; pick another")
    return name


def _check_model_reference(reference: str) -> str:
    _check_model_name(reference.partition("@")[0])
    return reference


def check_observation(value: Any) -> Any:
    """Accept a finite number, rectangular nested lists of them, or an object of these.

    :raises ValueError: If it is anything else; the message states the broken rule.
    """
    if type(value) is list and 0 < len(value) <= MAX_OBSERVATION_NUMBERS and _is_row_of_numbers(value):
        return value  # most are
    parts = list(value.values()) if isinstance(value, dict) else [value]
    if not parts:
        raise ValueError("an observation with keys must have at least one")
    if len(parts) > MAX_OBSERVATION_NUMBERS:
        raise ValueError(_TOO_MANY_NUMBERS)
    if sum(math.prod(_measure_observation(part, _MAX_OBSERVATION_DEPTH)) for part in parts) > MAX_OBSERVATION_NUMBERS:
        raise ValueError(_TOO_MANY_NUMBERS)
    return value


def _is_row_of_numbers(row: list[Any]) -> bool:
    """Return whether a list holds finite numbers only, within the range of a 32-bit float."""
    return set(map(type, row)) <= _NUMBERS and all(map(FLOAT32_MAX.__ge__, map(abs, row)))  # as below


def _measure_observation(value: Any, depth_left: int) -> tuple[int, ...]:
    if isinstance(value, list):
        if len(value) > MAX_OBSERVATION_NUMBERS:
            raise ValueError(_TOO_MANY_NUMBERS)
        if depth_left == 0:
            raise ValueError(f"an observation may be nested at most {_MAX_OBSERVATION_DEPTH} deep")
        # A whole row is checked at once: a call for each number of an image would keep other requests waiting.
        if set(map(type, value)) <= _NUMBERS:
            if not _is_row_of_numbers(value):
                raise ValueError(NOT_FINITE)
            return (len(value),)
        shapes = {_measure_observation(item, depth_left - 1) for item in value}
        if len(shapes) > 1:
            raise ValueError("the lists of an observation must all have the same length and depth")
        return (len(value), *shapes.pop())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("an observation must hold numbers only")
    if not -FLOAT32_MAX <= value <= FLOAT32_MAX:  # exact for integers of any length, and false for NaN
        raise ValueError(NOT_FINITE)
    return ()


def check_action_masks(value: Any) -> Any:
    """Accept flags in one list, or in one list per component.

    :raises ValueError: If it is anything else; the message states the broken rule.
    """
    if not isinstance(value, list):
        raise ValueError("action_masks must be a list")
    lists = value if value and all(isinstance(part, list) for part in value) else [value]
    if sum(map(len, lists)) > _MAX_MASK_FLAGS or len(lists) > _MAX_MASK_FLAGS:
        raise ValueError(f"action_masks may hold at most {_MAX_MASK_FLAGS} flags")
    if not all(isinstance(flag, bool) or (type(flag) is int and flag in (0, 1)) for part in lists for flag in part):
        raise ValueError("action_masks must hold true and false, or 1 and 0, in one list or in one list per component")
    return value


ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN, max_length=100), AfterValidator(_check_model_name)]
# ``name@3`` is a version, ``name@prod`` whichever the alias points at.
MODEL_REFERENCE_PATTERN = MODEL_NAME_PATTERN[:-1] + r"(@([1-9][0-9]{0,8}|[A-Za-z][A-Za-z0-9_-]{0,31}))?$"
ModelReference = Annotated[
    str, Field(pattern=MODEL_REFERENCE_PATTERN, max_length=133), AfterValidator(_check_model_reference)
]
_OBSERVATION_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number"}, {"type": "array", "items": {}}, {"type": "object"}]
}
Observation = Annotated[Any, PlainValidator(check_observation), WithJsonSchema(_OBSERVATION_SCHEMA)]
_FLAG_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 1}]}
_MASKS_SCHEMA = {"type": "array", "items": {"anyOf": [_FLAG_SCHEMA, {"type": "array", "items": _FLAG_SCHEMA}]}}
ActionMasks = Annotated[Any, PlainValidator(check_action_masks), WithJsonSchema(_MASKS_SCHEMA)]
# Items are checked later, one by one, so that the others are answered if one is invalid.
ObservationBatch = Annotated[
    list[Any],
    Field(min_length=1),
    WithJsonSchema({"type": "array", "items": _OBSERVATION_SCHEMA, "minItems": 1, "maxItems": MAX_BATCH_ITEMS}),
]
MaskBatch = Annotated[
    list[Any], WithJsonSchema({"type": "array", "items": {"anyOf": [_MASKS_SCHEMA, {"type": "null"}]}, "minItems": 1})
]


def _check_env_kwargs(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it must be an object of arguments")
    check_env_kwargs(value)
    return value


EnvKwargs = Annotated[dict[str, Any], PlainValidator(_check_env_kwargs), WithJsonSchema({"type": "object"})]
_WRAPPER_NAMES: dict[str, Any] = {"type": "string", "enum": list(WRAPPERS)}
_WRAPPERS_SCHEMA = {
    "type": "array",
    "maxItems": MAX_WRAPPERS,
    "items": {
        "anyOf": [
            _WRAPPER_NAMES,
            {"type": "object", "properties": {"name": _WRAPPER_NAMES}, "required": ["name"]},
        ]
    },
}
Wrappers = Annotated[list[dict[str, Any]], PlainValidator(parse_wrappers), WithJsonSchema(_WRAPPERS_SCHEMA)]
RewardName = Annotated[str, Field(min_length=1, max_length=64, pattern=REWARD_NAME_PATTERN)]
EnvName = Annotated[str, Field(min_length=1, max_length=MAX_ENV_NAME_CHARS, pattern=ENV_NAME_PATTERN)]


def name_known_fields(
    error: ValidationError, known: Iterable[str], remedies: Mapping[str, str] = MappingProxyType({})
) -> ValidationError:
    """Add to the error of every unknown field which known field it resembles.

    :param known: The fields of the request itself, not of objects within it.
    :param remedies: What to do with other names that people send.
    """
    violations = error.errors(include_url=False)
    if not any(violation["type"] == "extra_forbidden" for violation in violations):
        return error
    return ValidationError.from_exception_data(
        error.title,
        [
            InitErrorDetails(
                type=_describe_type(violation, known, remedies), loc=violation["loc"], input=violation["input"]
            )
            for violation in violations
        ],
    )


def _describe_type(violation: ErrorDetails, known: Iterable[str], remedies: Mapping[str, str]) -> PydanticCustomError:
    message = violation["msg"]
    if violation["type"] == "extra_forbidden" and not message.startswith("unknown field"):  # a request's within another
        message, name = "unknown field", str(violation["loc"][0])
        if len(violation["loc"]) == 1 and name in remedies:
            message = f"unknown field; {remedies[name]}"
        elif len(violation["loc"]) == 1 and (hint := suggest(name, known, n_most=1, spell=str)):
            message = f"unknown field; {hint}"
    # The message is a template, so braces in it stay as they are unless the context names them.
    return PydanticCustomError(violation["type"], message, violation.get("ctx"))


class Request(BaseModel):
    """A request that refuses unknown fields and converts no types."""

    model_config = ConfigDict(strict=True, extra="forbid")
    # What to do with fields of other requests, by name.
    _remedies: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @model_validator(mode="wrap")
    @classmethod
    def _check_field_names(cls, body: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        # Otherwise every unknown field of a large body would get its own error, which takes a second to build.
        if isinstance(body, dict) and len(body) > _MAX_FIELDS:
            raise ValueError(f"a request may have at most {_MAX_FIELDS} fields")
        try:
            return build(body)
        except ValidationError as error:
            raise name_known_fields(error, cls.model_fields, cls._remedies) from error
