"""Learning curves as pictures."""

import io
from typing import Literal

from service.errors import InvalidRequestError, printable
from service.jobs.job import Job
from service.jobs.records.history import MetricColumn

Theme = Literal["light", "dark"]

_SIZE_INCHES = (8.0, 4.5)
_DOTS_PER_INCH = 100
_COLOURS: dict[Theme, tuple[str, str, str]] = {  # paper, ink, line
    "light": ("#ffffff", "#1f2933", "#1d6fb8"),
    "dark": ("#14181d", "#e4e7eb", "#62b0f0"),
}


def draw_curve(job: Job, metric: str, theme: Theme) -> bytes:
    """Draw a job's metric over its simulator steps, as a PNG.

    :param metric: One of SB3's log keys.
    :raises InvalidRequestError: If the job has no such metric.
    """
    column = job.history.get_column(metric)
    if not len(column.values):
        none = "none, since it ended before its first rollout"
        if not job.status.is_final:
            none = "none yet; try again after its first rollout"
        known = ", ".join(job.history.list_keys()) or none
        raise InvalidRequestError(f"the job has no metric '{printable(metric)}'; its metrics: {known}.")
    return _draw(column, f"{job.config.model_name} on {job.config.env_name}", metric, theme)


def _draw(column: MetricColumn, title: str, metric: str, theme: Theme) -> bytes:
    # Imported here, since it takes a second that only pictures need. pyplot would keep every figure in memory.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paper, ink, line = _COLOURS[theme]
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, facecolor=paper, layout="constrained")
    axes = figure.add_subplot(facecolor=paper)
    marker = "o" if len(column.values) == 1 else ""
    axes.plot(column.timesteps, column.values, color=line, linewidth=1.8, marker=marker)
    axes.set_title(title, color=ink)
    axes.set_xlabel("simulator steps", color=ink)
    axes.set_ylabel(metric, color=ink)
    axes.tick_params(colors=ink)
    axes.grid(color=ink, alpha=0.15)
    axes.spines[:].set_color(ink)
    file = io.BytesIO()
    FigureCanvasAgg(figure)  # draws without a screen
    figure.savefig(file, format="png")
    return file.getvalue()
