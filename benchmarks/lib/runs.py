"""Runs to make and finished runs, stored as JSON lines as soon as they are finished."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Settings = dict[str, Any]  # only values of JSON, so that it reads back equal

RESULTS_FOLDER = Path(__file__).parent.parent / "results"


@dataclass(frozen=True)
class RunSpec:
    """A run to make.

    :param env: Gymnasium id.
    :param method: Name of the row in the tables.
    :param algorithm: Key of ``benchmarks.learning.trainers.TRAINERS``.
    :param seed: Seed of the training; the evaluation's seeds follow from it.
    :param budget: Simulator steps to train for.
    :param settings: Settings of the algorithm.
    """

    env: str
    method: str
    algorithm: str
    seed: int
    budget: int
    settings: Settings


@dataclass(frozen=True)
class Run(RunSpec):
    """A finished run.

    :param total_timesteps: Simulator steps taken; above the budget where the last rollout went beyond it.
    :param curve: Pairs of simulator steps and score; the last is ``[total_timesteps, score]``.
    :param score: Mean own reward of the final deterministic policy.
    :param wall_seconds: Duration of the training without the evaluations.
    :param versions: Package to version, and the commit of what learns; older runs name none.
    :param notes: Other figures of the method.
    """

    total_timesteps: int
    curve: list[list[float]]
    score: float
    wall_seconds: float
    versions: dict[str, str]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> RunSpec:
        """The run as it was asked for."""
        return RunSpec(self.env, self.method, self.algorithm, self.seed, self.budget, self.settings)


def read_runs(path: Path) -> list[Run]:
    """Read all runs; skip a line that an interruption cut off.

    :param path: Need not exist.
    """
    if not path.exists():
        return []
    runs = []
    for line in path.read_text().splitlines():
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        runs.append(Run(**fields))
    return runs


def append_run(path: Path, run: Run) -> None:
    """Append a run in one write, on a new line even if the last line was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(asdict(run)) + "\n").encode()
    with path.open("ab+", buffering=0) as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line)


def find_missing(specs: Iterable[RunSpec], finished: Iterable[Run]) -> list[RunSpec]:
    """Return the specs without a finished run of the same settings and budget, each once."""
    specs_finished = [run.spec for run in finished]
    missing: list[RunSpec] = []
    for spec in specs:
        if spec not in specs_finished and spec not in missing:
            missing.append(spec)
    return missing


def select_runs(specs: Iterable[RunSpec], finished: Iterable[Run]) -> list[Run]:
    """Return the last finished run of each spec that has one, in the order of the specs."""
    finished = list(finished)
    latest = [next((run for run in reversed(finished) if run.spec == spec), None) for spec in specs]
    return [run for run in latest if run is not None]
