"""The headline of a job or a model: first what its policy earns, then what training itself earned."""

from typing import NamedTuple

from service.dashboard.widgets.html_elements import Text, make_box
from service.dashboard.widgets.number_format import (
    format_count,
    format_interval,
    format_number,
    format_share,
    format_success,
    has_no_width,
)
from service.schemas.jobs import EpisodeFigures, FinalEvaluation, TrainingStatus
from service.schemas.models import ModelCard

_TRAINING_KEY = "rollout/ep_rew_mean"


class Headline(NamedTuple):
    """Texts of a headline; what was not measured is empty.

    :param figure: Mean reward of an evaluation's episodes.
    :param interval: Its 95 % interval, or that all episodes earned the same, in words.
    :param caption: Which evaluation it is, and of how many episodes.
    :param training: The mean that training reports, which is not the policy's score.
    :param success: Share of the episodes that succeeded.
    :param success_interval: Its 95 % interval, in words.
    """

    figure: str
    interval: str
    caption: str
    training: str = ""
    success: str = ""
    success_interval: str = ""


def choose_headline(status: TrainingStatus) -> Headline:
    """Choose the headline of a job: the final evaluation, or the latest one of a policy that has been trained."""
    mean = status.metrics.get(_TRAINING_KEY)
    training = "" if mean is None else f"training mean {format_number(mean)}"
    final, latest = status.final_evaluation, status.evaluation
    if final is not None:
        return _describe_final(final)._replace(training=training)
    if latest is not None and (latest.timesteps > 0 or status.current_timesteps == 0):
        steps = f"evaluation after {format_count(latest.timesteps)} steps"
        return _describe(latest, steps, f"{latest.n_episodes}")._replace(training=training)
    caption = "no evaluation" if status.status.is_final else "no evaluation yet"
    if latest is not None:
        caption = f"no evaluation since the one before training ({format_number(latest.mean_reward)})"
    return Headline("", "", caption, training)


def describe_model(card: ModelCard) -> Headline | None:
    """Choose the headline of a model: the final evaluation of its job, or else the latest one; None without any."""
    if card.final_evaluation is not None:
        return _describe_final(card.final_evaluation)
    return (
        None if card.evaluation is None else _describe(card.evaluation, "evaluation", f"{card.evaluation.n_episodes}")
    )


def describe_figures(figures: EpisodeFigures) -> str:
    """Write an evaluation in one line."""
    figure, interval = format_number(figures.mean_reward), format_interval(figures.mean_reward_ci95)
    parts = [f"{figure} ({interval})" if interval else figure, format_success(figures.success_rate)]
    return ", ".join(filter(None, [*parts, f"{figures.n_episodes} episodes" if interval else ""]))


def _describe_final(final: FinalEvaluation) -> Headline:
    n_episodes = f"{final.n_episodes}" if final.complete else f"the first {final.n_episodes}"
    return _describe(final, "final evaluation", n_episodes)


def _describe(figures: EpisodeFigures, name: str, n_episodes: str) -> Headline:
    figure, ends = format_number(figures.mean_reward), figures.mean_reward_ci95
    interval = "" if ends is None else f"95 % interval {format_interval(ends)}"
    if ends is not None and has_no_width(ends):
        interval = f"all {figures.n_episodes} episodes earned {figure}"
    unit = "episode" if figures.n_episodes == 1 else "episodes"
    rates = figures.success_rate_ci95
    return Headline(
        figure,
        interval,
        f"{name}, mean of {n_episodes} {unit}",
        success=format_success(figures.success_rate),
        success_interval="" if rates is None else f"95 % interval {100 * rates[0]:.3g} to {format_share(rates[1])}",
    )


class HeadlineText:
    """A headline in the page."""

    def __init__(self) -> None:
        with make_box("headline"):
            with make_box("row-flex baseline"):
                self._figure, self._interval = Text("", "figure"), Text("", "muted small number")
            with make_box("row-flex baseline"):
                self._success, self._success_interval = Text("", "success number"), Text("", "muted small number")
            with make_box("row-flex baseline between"):
                self._caption, self._training = Text("", "muted small"), Text("", "muted small number")

    def show(self, headline: Headline) -> None:
        """Show other texts."""
        self._figure.set_text(headline.figure)
        self._interval.set_text(headline.interval)
        self._success.set_text(f"{headline.success[:1].upper()}{headline.success[1:]}")
        self._success_interval.set_text(headline.success_interval)
        self._training.set_text(headline.training)
        self._caption.set_text(f"{headline.caption[:1].upper()}{headline.caption[1:]}")
