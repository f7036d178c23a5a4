"""Pydantic's errors in words for a client."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_core.suggestions import suggest
from service.errors import printable
from service.schemas.fields import (
    ALIAS_PATTERN,
    ENV_NAME_PATTERN,
    MODEL_NAME_PATTERN,
    MODEL_REFERENCE_PATTERN,
    REWARD_NAME_PATTERN,
    TAG_PATTERN,
)

# A request can break thousands of rules at once; naming ten is help enough.
MAX_REPORTED_ERRORS = 10
_NAME_IN_WORDS = (
    "a model's name consists of letters from a to z, digits, '.', '_' and '-'; it starts with a letter or a digit and "
    "does not end with a '.'"
)
_PATTERNS_IN_WORDS = {
    MODEL_NAME_PATTERN: _NAME_IN_WORDS,
    MODEL_REFERENCE_PATTERN: f"{_NAME_IN_WORDS}, and '@' may follow, with a version or an alias",
    ENV_NAME_PATTERN: "an environment's name consists of letters from a to z, digits, '.', '_', '-' and '/'",
    REWARD_NAME_PATTERN: "a reward function's name consists of letters from a to z, digits, '.', '_' and '-'",
    ALIAS_PATTERN: "an alias consists of at most 32 letters from a to z, digits, '_' and '-', and starts with a letter",
    TAG_PATTERN: "a tag has no comma, since lists of tags are written with commas; send several as a list",
}

# The commonest of pydantic's errors, in words that name the rule, by type; the names in braces are of their context.
_RULES = {
    "missing": "must be given",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number in plain digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number in plain digits, such as 60 or 2.5",
    "finite_number": "must be a finite number, such as 60 or 2.5",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a string",
    "string_too_short": "must have {min_length} or more characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_unicode": "must be a text without halves of surrogate pairs, which UTF-8 cannot write",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have at most {max_length} entries",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dataclass_type": "must be an object",
    "enum": "must be {expected}",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
}
_BOUNDS = frozenset({"greater_than_equal", "greater_than", "less_than_equal", "less_than"})
_MAX_NUMBER_CHARS = 40
_MISSING_BODY = "the body is missing; send an object in JSON, with the header 'Content-Type: application/json'"


def _describe_violation(error: Mapping[str, Any]) -> dict[str, str]:
    if error["type"] == "json_invalid" and not error["loc"]:  # pydantic's own parser names the place in its message
        if not error["input"]:
            return {"field": "", "message": _MISSING_BODY}
        return {"field": "", "message": f"the body is not valid JSON: {error['ctx']['error']}"}
    if error["type"] == "json_invalid":
        return {"field": "", "message": f"the body is not valid JSON, see character {error['loc'][-1]}"}
    # "body" means nothing to a client; texts are left out, since an answer must not repeat what may be a secret.
    location = [str(part) for part in error["loc"] if part != "body"]
    message = _describe_pattern(error) or _describe_rule(error) or str(error["msg"]).removeprefix("Value error, ")
    message += _suggest_choice(error)
    if not location and error["loc"] and error["type"] == "missing":
        message = _MISSING_BODY
    elif not location and message.startswith("must "):
        message = f"the body {message}"
    return {"field": printable(".".join(location)), "message": printable(message, 300)}


def _describe_pattern(error: Mapping[str, Any]) -> str:
    """Say in words what a text has to look like; empty if another rule is broken."""
    if error["type"] != "string_pattern_mismatch":
        return ""
    return _PATTERNS_IN_WORDS.get(error["ctx"]["pattern"], "this text has characters that are not allowed here")


def _describe_rule(error: Mapping[str, Any]) -> str:
    """Name the rule, and the number that breaks it; of anything else the kind, so that nothing private is repeated.

    Empty for a rule without words here.
    """
    kind = error["type"]
    if kind in ("too_short", "too_long") and isinstance(error.get("input"), str):  # by a further limit of a type's own
        kind = f"string_{kind}"
    if (rule := _RULES.get(kind)) is None:
        return ""
    rule = rule.format_map(error.get("ctx", {}))
    match error.get("input", ""):
        case None | bool() | int() | float() as number if len(written := json.dumps(number)) <= _MAX_NUMBER_CHARS:
            return f"{rule}, not {written}"
        # Only a number, such as inf, is a text that breaks such a rule.
        case str() as text if _is_of_number(error) and len(text) <= _MAX_NUMBER_CHARS:
            return f"{rule}, not {text}"
        # In an address or a variable, everything is a text.
        case str() if error["type"].endswith("_type"):
            return f"{rule}, not a string"
    return rule


def _is_of_number(error: Mapping[str, Any]) -> bool:
    """Tell whether a rule is one for numbers that a variable, or in the case of bounds an address, breaks."""
    return error["type"] == "finite_number" or (error["type"] in _BOUNDS and error["loc"][:1] == ("query",))


def _is_choice(error: Mapping[str, Any]) -> bool:
    return error["type"] in ("enum", "literal_error")


def _suggest_choice(error: Mapping[str, Any]) -> str:
    """Suggest the allowed value that resembles the one that was sent; empty if none does."""
    if not _is_choice(error) or not isinstance(error["input"], str):
        return ""
    hint = suggest(error["input"], re.findall("'([^']*)'", error["ctx"]["expected"]))
    return f"; {hint}" if hint else ""


def summarize_violations(errors: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, str]]]:
    """Turn pydantic's errors into one sentence and a list of at most ten fields with their messages."""
    violations = [_describe_violation(error) for error in errors[:MAX_REPORTED_ERRORS]]
    detail = "; ".join(f"{v['field']}: {v['message']}" if v["field"] else v["message"] for v in violations[:3])
    return detail + ("; ..." if len(errors) > 3 else ""), violations
