"""Write ``docs/environments.md`` from the outcomes of trials."""

from collections.abc import Mapping, Sequence
from typing import Any

_HEADER = "| environment | construct | mode | restored | capture | restore | step | train | save | HTTP |"
_RULE = "|---|---|---|---|---|---|---|---|---|---|"
# The table's word for a stage of the trial, where it has another.
_COLUMNS = {"truth": "restored", "http": "HTTP"}

_INTRODUCTION = """# Environments that were tried

`make environments` installs each package into a throw-away environment on top of the project's own, tries its
environments one by one in processes of their own, and writes this page.

- **construct**: `gym.make`, a reset and a step.
- **mode**: what `group_mode="auto"` takes: `branch`, or `episode`, which only resets and steps.
- **restored**: whether `check_branchable` replays 64 steps exactly.
- **capture**, **restore**, **step**: medians in µs. The machine did other things too: compare within a row.
- **train**, **save**: `GRPO` with its defaults trains one rollout of 256 steps; a saved model answers as before.
- **HTTP**: `POST /train` with the id alone, then `POST /inference`. "wrapper" or "arguments" say that the id is not
  enough for this environment.
"""


def format_page(packages: Sequence[Mapping[str, Any]], outcomes: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the page.

    :param packages: Each with ``package``, ``note``, ``error`` (why it was not installed, or empty) and ``labels``, the
        keys of its environments' outcomes.
    :param outcomes: What the stages of each trial printed, by label.
    """
    rows, differences = [], []
    for package in packages:
        for label in package["labels"]:
            outcome = outcomes.get(label)
            if outcome is not None:
                rows.append(format_row(label, outcome))
                differences.extend(list_differences(label, outcome))
    missing = [f"- `{package['package']}`: {package['error']}" for package in packages if package["error"]]
    notes = [f"- `{package['package']}`: {package['note']}" for package in packages if package["note"]]
    parts = [_INTRODUCTION, "\n".join([_HEADER, _RULE, *rows])]
    parts += ["\n## What differs\n", "\n".join(differences) or "Nothing."]
    parts += ["\n## Notes on packages\n", "\n".join(notes) or "None."]
    parts += ["\n## Not installed\n", "\n".join(missing) or "All were."]
    return "\n".join(parts) + "\n"


def format_row(label: str, outcome: Mapping[str, Any]) -> str:
    """Format the table's row of one environment."""
    cells = [
        f"`{label}`",
        _mark(outcome, "construct"),
        str(outcome.get("mode", "-")),
        "exact" if outcome.get("truth") == "exact" else "no" if "truth" in outcome else "-",
        *[_show_us(outcome.get(f"{name}_us")) for name in ("capture", "restore", "step")],
        *[_mark(outcome, name) for name in ("train", "save")],
        _needs(outcome) or _mark(outcome, "http"),
    ]
    return f"| {' | '.join(cells)} |"


def list_differences(label: str, outcome: Mapping[str, Any]) -> list[str]:
    """List what did not go as it does for ``CartPole-v1``, in the words of the error or warning."""
    expected = {"construct": "yes", "truth": "exact", "train": "yes", "save": "yes"}
    if not _needs(outcome):
        expected["http"] = "yes"
    found = [
        f"- `{label}`, {_COLUMNS.get(name, name)}: {outcome[name]}"
        for name, value in expected.items()
        if outcome.get(name, value) != value
    ]
    if "stopped" in outcome:
        found.append(f"- `{label}` was stopped after {outcome['stopped']:.0f} s")
    return found


def _mark(outcome: Mapping[str, Any], name: str) -> str:
    value = outcome.get(name)
    return "-" if value is None else "yes" if value == "yes" else "no"


def _needs(outcome: Mapping[str, Any]) -> str:
    if outcome.get("http") == "yes":
        return ""
    return "wrapper" if outcome.get("has_wrapper") else "arguments" if outcome.get("has_kwargs") else ""


def _show_us(us: float | None) -> str:
    return "-" if us is None else f"{us:,.0f}"
