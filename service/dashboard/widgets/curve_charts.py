"""Charts of the selected jobs over their simulator steps; ``static/curves.js`` draws them."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from nicegui import ui

from service.dashboard.widgets.html_elements import Text, make_box, make_heading
from service.jobs.history import JobEvent
from service.jobs.job import Job

# People cannot tell more lines apart.
MAX_SHOWN = 6
# Points of a line in one message; a chart is no wider in pixels.
_MAX_POINTS = 600

Point = list[float]


class Chart(NamedTuple):
    """One chart.

    :param key: Name of its points in messages to the browser.
    :param hint: How to read it.
    """

    key: str
    title: str
    hint: str


CHARTS = (
    Chart(
        "reward",
        "Episode reward",
        "In the environment's own reward; it should rise, then level off. An evaluation plays whole episodes with the "
        "policy's most likely actions; where the shaded 95 % intervals of two jobs overlap, their difference may be "
        "chance. The training mean is of the episodes and branches of training, with drawn actions.",
    ),
    Chart(
        "entropy",
        "Entropy",
        "How undecided the policy is. It should fall slowly: if it drops early, the policy has stopped exploring.",
    ),
    Chart(
        "kl",
        "KL divergence",
        "How far an update moves the policy. Small and even is healthy; against peaks, lower the learning rate.",
    ),
    Chart(
        "silence",
        "Groups without a signal",
        "Share of groups whose branches all earned the same; they teach nothing. If it stays near 1, change the "
        "reward, the horizon or the group size.",
    ),
)
# Log key to chart, and how to turn its value into a point.
_READERS: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "rollout/ep_rew_mean": ("training", float),
    "train/entropy_loss": ("entropy", lambda loss: -loss),
    "train/approx_kl": ("kl", float),
    "rollout/zero_std_group_fraction": ("silence", float),
}
# Event to line; with the training mean, they make up the chart of rewards.
_EVALUATIONS = {"job.evaluation": "evaluation", "job.final_evaluation": "final"}


class CurveCharts:
    """Charts that send each point to the browser once."""

    def __init__(self) -> None:
        self._last_event_ids: dict[str, int] = {}
        self._entries: dict[str, ui.element] = {}
        with make_box("curves"):
            self._legend = make_box("legend", "ul", aria_label="Jobs in the charts")
            charts = [{"id": _make_chart(chart, self._legend), "key": chart.key} for chart in CHARTS]
        ui.run_javascript(f"grpoCurves.start({json.dumps(charts)})")

    def show(self, job: Job, colour: int) -> None:
        """Add a job.

        :param colour: Index of its colour, below ``MAX_SHOWN``.
        """
        self._last_event_ids[job.job_id] = 0
        with self._legend:
            entry = Text(job.config.model_name, tag="li").style(f"--series: var(--series-{colour})")
        self._entries[job.job_id] = entry
        ui.run_javascript(f"grpoCurves.show({json.dumps(job.job_id)}, {json.dumps(job.config.model_name)}, {colour})")
        self.update(job)

    def hide(self, job_id: str) -> None:
        """Remove a job."""
        if self._last_event_ids.pop(job_id, None) is not None:
            self._entries.pop(job_id).delete()
            ui.run_javascript(f"grpoCurves.hide({json.dumps(job_id)})")

    def update(self, job: Job) -> None:
        """Send the new points of a job."""
        last_event_id = self._last_event_ids[job.job_id]
        if job.history.last_event_id == last_event_id:
            return
        events = job.history.list_events(last_event_id)
        points = collect_points(events)
        self._last_event_ids[job.job_id] = events[-1].event_id
        if points:
            ui.run_javascript(f"grpoCurves.append({json.dumps(job.job_id)}, {json.dumps(points)})")


def _make_chart(chart: Chart, legend: ui.element) -> int:
    """Make an empty chart, and return the id of its element."""
    with make_box("card curve", "section", aria_label=chart.title):
        with make_box("row-flex between") as head:
            make_heading(chart.title)
        if chart is CHARTS[0]:
            legend.move(head)
            with make_box("line-key", "ul", aria_label="Lines of the chart"):
                for name in ("evaluation", "training mean", "final evaluation"):
                    Text(name, name.replace(" ", "-"), "li")
        with make_box("plot"):
            element = ui.echart({"series": []}).props(f'role=img aria-label="{chart.title}"')
            Text("Nothing yet", "nothing").props(f"id=nothing-{chart.key}")
        Text(chart.hint, "hint", "p")
    return element.id


def collect_points(events: Iterable[JobEvent]) -> dict[str, list[Point]]:
    """Collect the points of each chart: steps and value, and the ends of an evaluation's interval."""
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
    elif event.name in _EVALUATIONS:
        interval = event.payload["mean_reward_ci95"] or ()
        yield _EVALUATIONS[event.name], [steps, event.payload["mean_reward"], *interval]


def _thin(line: list[Point]) -> list[Point]:
    stride = -(-len(line) // _MAX_POINTS)
    thinned = line[::stride]
    return thinned if thinned[-1] is line[-1] else [*thinned, line[-1]]
