"""What pydantic says of a broken schema, in words for a client."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import printable
from service.suggestions import suggest

# A request can break thousands of rules at once; naming ten of them is help enough.
MAX_REPORTED_ERRORS = 10


def _describe_violation(error: Mapping[str, Any]) -> dict[str, str]:
    if error["type"] == "json_invalid" and not error["loc"]:  # pydantic's own parser tells the place in words
        return {"field": "", "message": f"the body is not valid JSON: {error['ctx']['error']}"}
    if error["type"] == "json_invalid":
        return {"field": "", "message": f"the body is not valid JSON, see character {error['loc'][-1]}"}
    # "body" says nothing to a client; input and context are left out, since they echo what was sent.
    location = [str(part) for part in error["loc"] if part != "body"]
    message = str(error["msg"]).removeprefix("Value error, ") + _suggest_choice(error)
    return {"field": printable(".".join(location)), "message": printable(message, 300)}


def _suggest_choice(error: Mapping[str, Any]) -> str:
    """Say which of the words that a field takes resembles the one that was sent."""
    if error["type"] not in ("enum", "literal_error") or not isinstance(error["input"], str):
        return ""
    hint = suggest(error["input"], re.findall("'([^']*)'", error["ctx"]["expected"]))
    return f"; {hint}" if hint else ""


def summarize_violations(errors: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, str]]]:
    """Turn pydantic's violations into one sentence and a short list of field and message."""
    violations = [_describe_violation(error) for error in errors[:MAX_REPORTED_ERRORS]]
    detail = "; ".join(f"{v['field']}: {v['message']}" if v["field"] else v["message"] for v in violations[:3])
    return detail + ("; ..." if len(errors) > 3 else ""), violations
