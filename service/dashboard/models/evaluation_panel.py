"""A policy compared with random actions."""

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_note, set_attributes, show_problem
from service.dashboard.widgets.number_format import format_interval, format_number, format_success
from service.errors import ServiceError
from service.models.playing.player import ModelPlayer
from service.schemas.jobs import EpisodeFigures
from service.schemas.models import EvaluateResponse

N_EPISODES = 20
EVALUATION_SEED = 0


class EvaluationPanel:
    """A button that evaluates a model, and the result.

    :param model_name: Model to evaluate.
    :param player: Plays its episodes.
    """

    def __init__(self, model_name: str, player: ModelPlayer) -> None:
        self._model_name = model_name
        self._player = player
        Text(
            f"{N_EPISODES} whole episodes in the environment's own reward, compared with random actions on the same "
            "seeds. The bars are 95 % intervals of the mean.",
            "muted small",
            "p",
        )
        self._result = make_box("stack", aria_live="polite")
        with make_box("row-flex") as self.controls:
            self._start = make_button("Evaluate", self._evaluate, "", "fact_check")
            self._spinner = ui.spinner(size="24px").props('aria-label="Evaluating"')
            self._spinner.set_visibility(False)

    async def _evaluate(self) -> None:
        set_attributes(self._start, disabled=True)
        self._spinner.set_visibility(True)
        try:
            answer = await run_in_threadpool(self._player.evaluate, self._model_name, N_EPISODES, EVALUATION_SEED, True)
        except ServiceError as error:
            show_problem(self._result, error.detail)
        else:
            self._show(answer)
        self._spinner.set_visibility(False)
        set_attributes(self._start, disabled=None)

    def _show(self, answer: EvaluateResponse) -> None:
        own, random = answer.evaluation, answer.random
        ends = [end for figures in (own, random) for end in _list_ends(figures)]
        margin = 0.04 * (max(ends) - min(ends)) or 1.0
        low, width = min(ends) - margin, max(ends) - min(ends) + 2 * margin
        self._result.clear()
        with self._result:
            with make_box("comparison"):
                _show_row("This policy", own, "interval own", low, width)
                _show_row("Random", random, "interval", low, width)
            if answer.better_than_random:
                make_note("Better than random: the intervals do not overlap.", "good", "check_circle")
            else:
                make_note("Not shown to be better than random: train it for longer.", "warn", "help")
            for warning in answer.warnings:
                make_note(warning, "warn", "content_cut")


def _show_row(name: str, figures: EpisodeFigures, classes: str, low: float, width: float) -> None:
    """Show the figures of one policy, with its interval as a bar.

    :param low: The reward at the left end of the axis.
    :param width: How far the axis reaches from there.
    """
    Text(name)
    with make_box(classes, aria_hidden="true"):
        first, last = ((end - low) / width for end in _list_ends(figures))
        make_box("", "i").style(f"left: {100 * first:.1f}%; width: {100 * (last - first):.1f}%")
        make_box("", "b").style(f"left: {100 * (figures.mean_reward - low) / width:.1f}%")
    with make_box("number"):
        Text(_describe(figures))
        if success := format_success(figures.success_rate):
            Text(success, "muted small", "div")


def _list_ends(figures: EpisodeFigures) -> tuple[float, float]:
    return figures.mean_reward_ci95 or (figures.mean_reward, figures.mean_reward)


def _describe(figures: EpisodeFigures) -> str:
    interval = format_interval(figures.mean_reward_ci95)
    return f"{format_number(figures.mean_reward)} ({interval})" if interval else format_number(figures.mean_reward)
