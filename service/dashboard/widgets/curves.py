"""The curves of the jobs that are shown, over the simulator steps."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from nicegui import ui

from service.dashboard.widgets.elements import Text, make_box, make_heading
from service.jobs.history import JobEvent
from service.jobs.job import Job

# More lines than this cannot be told apart.
MAX_SHOWN = 6
# Points of a line that are sent at first; a chart is no wider.
_MAX_POINTS = 600

Point = list[float]


class Chart(NamedTuple):
    """One of the charts.

    :param key: What its points are called between here and the browser.
    :param hint: How to read it.
    :param nothing: What it says while there are no points.
    """

    key: str
    title: str
    hint: str
    nothing: str = "Nothing yet"


CHARTS = (
    Chart(
        "reward",
        "Episode reward",
        "What the latest episodes earned in training, in the environment's own reward. It should rise, then stay.",
    ),
    Chart(
        "evaluation",
        "Evaluation",
        "Whole episodes that nothing is learned from. Where the shaded 95 % intervals of two jobs overlap, their "
        "difference may be chance.",
        "No evaluations. Set “eval_freq” in a new job to get them.",
    ),
    Chart(
        "entropy",
        "Entropy",
        "How undecided the policy is. It should fall slowly: near its floor early on, it has stopped to explore.",
    ),
    Chart(
        "kl",
        "KL divergence",
        "How far an update moves the policy. Small and even is healthy; peaks ask for a lower learning rate.",
    ),
    Chart(
        "silence",
        "Groups without a signal",
        "Share of groups whose branches all earned the same, which teach nothing. If it stays near 1, change the "
        "reward, the horizon or the group size.",
    ),
)
# What of a row of metrics goes where.
_READERS: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "rollout/ep_rew_mean": ("reward", float),
    "train/entropy_loss": ("entropy", lambda loss: -loss),
    "train/approx_kl": ("kl", float),
    "rollout/zero_std_group_fraction": ("silence", float),
}


class Curves:
    """Charts that are told of new points only."""

    def __init__(self) -> None:
        self._last_event_ids: dict[str, int] = {}
        self._entries: dict[str, ui.element] = {}
        with make_box("curves"):
            self._legend = make_box("legend", "ul", aria_label="Jobs in the charts")
            charts = [{"id": _make_chart(chart, self._legend), "key": chart.key} for chart in CHARTS]
        ui.run_javascript(f"grpoCurves.start({json.dumps(charts)})")

    def show(self, job: Job, colour: int) -> None:
        """Add a job.

        :param colour: Number of its colour, below ``MAX_SHOWN``.
        """
        self._last_event_ids[job.job_id] = 0
        with self._legend:
            entry = Text(job.config.model_name, tag="li").style(f"--series: var(--series-{colour})")
        self._entries[job.job_id] = entry
        ui.run_javascript(f"grpoCurves.show({json.dumps(job.job_id)}, {json.dumps(job.config.model_name)}, {colour})")
        self.update(job)

    def hide(self, job_id: str) -> None:
        """Take a job away."""
        if self._last_event_ids.pop(job_id, None) is not None:
            self._entries.pop(job_id).delete()
            ui.run_javascript(f"grpoCurves.hide({json.dumps(job_id)})")

    def update(self, job: Job) -> None:
        """Send the points that are new."""
        last_event_id = self._last_event_ids[job.job_id]
        if job.history.last_event_id == last_event_id:
            return
        events = job.history.list_events(last_event_id)
        points = collect_points(events)
        self._last_event_ids[job.job_id] = events[-1].event_id
        if points:
            ui.run_javascript(f"grpoCurves.append({json.dumps(job.job_id)}, {json.dumps(points)})")


def _make_chart(chart: Chart, legend: ui.element) -> int:
    """Make an empty chart; return the id of its element."""
    with make_box("card curve", "section", aria_label=chart.title):
        with make_box("row-flex between") as head:
            make_heading(chart.title)
        if chart is CHARTS[0]:
            legend.move(head)
        with make_box("plot"):
            element = ui.echart({"series": []}).props(f'role=img aria-label="{chart.title}"')
            Text(chart.nothing, "nothing").props(f"id=nothing-{chart.key}")
        Text(chart.hint, "hint", "p")
    return element.id


def collect_points(events: Iterable[JobEvent]) -> dict[str, list[Point]]:
    """Collect the points of each chart: steps and value, and of evaluations the ends of the interval."""
    points: dict[str, list[Point]] = {}
    for event in events:
        for key, point in _read_event(event):
            points.setdefault(key, []).append(point)
    return {key: _thin(line) for key, line in points.items()}


def _read_event(event: JobEvent) -> Iterable[tuple[str, Point]]:
    steps: Any = event.payload.get("timesteps")
    if event.name == "job.metrics":
        for name, value in event.payload["metrics"].items():
            if name in _READERS:
                key, read = _READERS[name]
                yield key, [steps, read(value)]
    elif event.name == "job.evaluation":
        interval = event.payload["mean_reward_ci95"] or ()
        yield "evaluation", [steps, event.payload["mean_reward"], *interval]


def _thin(line: list[Point]) -> list[Point]:
    stride = -(-len(line) // _MAX_POINTS)
    thinned = line[::stride]
    return thinned if thinned[-1] is line[-1] else [*thinned, line[-1]]
