"""Write what is generated in docs/arguments.md and API.md anew: ``python -m docs.argument_tables``.

The tables of hyperparameters stand between ``<!-- hyperparameters -->`` and ``<!-- end -->``, and come from the table
in ``grpo_core/options/hyperparameters.py`` and, in API.md, from the fields of ``TrainRequest``. The index of fields
stands between ``<!-- fields -->`` and ``<!-- end -->``, and comes from the other tables of API.md.
"""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from grpo_core.options.hyperparameters import HYPERPARAMETERS, OWN_HYPERPARAMETERS, Row
from service.schemas.training import DEFAULTS_IN_WORDS, TrainRequest

ROOT = Path(__file__).parent.parent
_HEADING = re.compile(r"^#+ (.+)$", flags=re.MULTILINE)
_FIELD_TABLE = re.compile(r"^\| (?:request|response) field .*\n\|[-|]+\n((?:\|.*\n)+)", flags=re.MULTILINE)


def make_library_table() -> str:
    """List GRPO's own hyperparameters, as docs/arguments.md does."""
    lines = ["| argument | default | meaning |", "|---|---|---|"]
    for row in OWN_HYPERPARAMETERS.values():
        default = f'"{row.default}"' if row.choices else row.default
        meaning = f"{row.meaning}; `None`: {row.none_means}" if row.none_means else row.meaning
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
        return row.none_means
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


def make_field_index(page: str) -> str:
    """List every field that a page describes, and the sections that do.

    :param page: Text of the page; sections begin at their headings, and list fields in tables.
    """
    sections: dict[str, list[str]] = {}
    parts = _HEADING.split(page)[1:]
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        for table in _FIELD_TABLE.findall(text):
            for row in table.splitlines():
                places = sections.setdefault(row.split("|")[1].strip(" `"), [])
                link = f"[{heading.replace('`', '')}](#{_make_anchor(heading)})"
                if link not in places:
                    places.append(link)
    lines = ["| field | where |", "|---|---|"]
    lines += [f"| `{name}` | {', '.join(places)} |" for name, places in sorted(sections.items())]
    return "\n".join(lines) + "\n"


def _make_anchor(heading: str) -> str:
    """Spell a heading as GitHub does in links to it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


PAGES: dict[str, Callable[[], str]] = {"docs/arguments.md": make_library_table, "API.md": make_request_table}
INDEXED_PAGE = "API.md"


def fill(page: str, table: str, mark: str = "hyperparameters") -> str:
    """Put a table in the place of the one that a page has after a mark."""
    block = rf"(?<=<!-- {mark} -->\n\n).*?(?=\n<!-- end -->)"
    return re.sub(block, lambda match: table, page, flags=re.DOTALL)


def main() -> None:
    """Write the pages."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, make_table in PAGES.items():
        path = ROOT / name
        path.write_text(fill(path.read_text(), make_table()))
    path = ROOT / INDEXED_PAGE
    page = path.read_text()
    path.write_text(fill(page, make_field_index(page), "fields"))


if __name__ == "__main__":
    main()
