"""Write the tables of hyperparameters in README.md and API.md anew: ``python -m docs.argument_tables``.

They stand between ``<!-- hyperparameters -->`` and ``<!-- end -->``, and come from the table in
``grpo_core/options/hyperparameters.py`` and, in API.md, from the fields of ``TrainRequest``.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path

from grpo_core.options.hyperparameters import HYPERPARAMETERS, OWN_HYPERPARAMETERS, Row
from service.schemas.training import DEFAULTS_IN_WORDS, TrainRequest

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile("(?<=<!-- hyperparameters -->\n\n).*(?=\n<!-- end -->)", flags=re.DOTALL)


def make_library_table() -> str:
    """List GRPO's own hyperparameters, as README.md does."""
    lines = ["| argument | default | meaning |", "|---|---|---|"]
    for row in OWN_HYPERPARAMETERS.values():
        default = f'"{row.default}"' if row.choices else row.default
        meaning = f"{row.meaning}; `None`: {row.none}" if row.none else row.meaning
        lines.append(f"| `{row.name}` | `{default}` | {meaning} |")
    return "\n".join(lines) + "\n"


def make_request_table() -> str:
    """List the hyperparameters of a request, as API.md does."""
    lines = ["| request field | default | range | meaning |", "|---|---|---|---|"]
    for row in HYPERPARAMETERS.values():
        lines.append(f"| `{row.name}` | {_describe_default(row)} | {_describe_range(row)} | {row.meaning} |")
    return "\n".join(lines) + "\n"


def _describe_default(row: Row) -> str:
    stated = TrainRequest.model_fields[row.name].default
    default = row.default if stated is None else stated
    if row.name in DEFAULTS_IN_WORDS:
        return DEFAULTS_IN_WORDS[row.name]
    if default is None:
        return row.none
    return f"`{_spell(default)}`"


def _describe_range(row: Row) -> str:
    if row.choices or row.kind is bool:
        return ", ".join(f"`{_spell(choice)}`" for choice in row.choices or (True, False))
    most = _spell(row.request_most)
    return (
        f"{_spell(row.request_least)} to {most}"
        if row.above == -math.inf
        else f"above {_spell(row.above)}, up to {most}"
    )


def _spell(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:,.10g}"


PAGES: dict[str, Callable[[], str]] = {"README.md": make_library_table, "API.md": make_request_table}


def fill(page: str, table: str) -> str:
    """Put a table in the place of the one that a page has."""
    return _BLOCK.sub(lambda match: table, page)


if __name__ == "__main__":
    for name, make_table in PAGES.items():
        path = ROOT / name
        path.write_text(fill(path.read_text(), make_table()))
