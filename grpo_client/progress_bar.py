"""A progress bar for a job."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from grpo_client.answers.events import JobEvent
from grpo_client.answers.text import clean
from grpo_client.errors import MissingPackage
from grpo_client.listeners import tell

if TYPE_CHECKING:
    from rich.progress import Progress

Listener = Callable[[JobEvent], None]


@contextmanager
def make_listener(on_event: Listener | None, progress: bool) -> Iterator[Listener]:
    """Combine a caller's listener and a progress bar into one listener.

    :param progress: Whether to show a bar.
    :raises MissingPackage: If rich is missing.
    :raises InvalidArgument: At an event, if the caller's listener is asynchronous: it would never run.
    """
    listeners: list[Callable[[JobEvent], object]] = [] if on_event is None else [on_event]

    def tell_all(event: JobEvent) -> None:
        for listen in listeners:
            tell(listen, event, "on_event")

    if not progress:
        yield tell_all
        return
    with _make_progress() as bar:
        listeners.append(ProgressBar(bar))
        yield tell_all


class ProgressBar:
    """Shows the events of a job as a bar, with the reward of the latest evaluation or, before any, of training.

    :param bar: From ``_make_progress``.
    """

    def __init__(self, bar: "Progress") -> None:
        self._bar = bar
        self._has_evaluation = False
        self._task = bar.add_task("queued", total=1.0, reward="", entropy="", left="")

    def __call__(self, event: JobEvent) -> None:
        """Show an event."""
        payload = event.payload
        match event.name:
            case "job.status":
                self._update(description=payload["status"])
            case "job.progress":
                self._update(completed=payload["progress"], left=_format_seconds(payload["eta_seconds"]))
            case "job.metrics":
                self._show_metrics(payload["metrics"])
            case "job.evaluation" | "job.final_evaluation":
                self._show_evaluation(payload)
            case "job.warning":
                self._bar.console.print(f"warning: {clean(payload['warning'])}", markup=False, emoji=False)
            case _ if event.is_terminal:
                self._update(description=payload["status"], completed=payload["progress"], left="")
                self._show_metrics(payload["metrics"])

    def _show_metrics(self, metrics: dict[str, float]) -> None:
        if "rollout/ep_rew_mean" in metrics and not self._has_evaluation:
            self._update(reward=f"training {metrics['rollout/ep_rew_mean']:.1f}")
        if "train/entropy_loss" in metrics:  # the negative of the entropy
            self._update(entropy=f"entropy {-metrics['train/entropy_loss']:.2f}")

    def _show_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        self._has_evaluation = True
        self._update(reward=f"reward {evaluation['mean_reward']:.1f}")

    def _update(self, **fields: Any) -> None:
        self._bar.update(self._task, **fields)


def _make_progress() -> "Progress":
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    except ImportError as error:
        raise MissingPackage("a progress bar needs rich: pip install rich, or wait without one.") from error
    texts = [TextColumn("{task.fields[" + name + "]}", markup=False) for name in ("reward", "entropy", "left")]
    # On stderr, so that a program's own output can be piped.
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), *texts, console=console
    )


def _format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left"
