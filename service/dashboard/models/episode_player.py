"""A film of an episode in the page."""

import secrets

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.widgets.html_elements import Text, make_box, make_button, set_attributes
from service.dashboard.widgets.number_format import format_count, format_number
from service.errors import ServiceError
from service.models.playing.play import FILM_STEPS, FilmOrder
from service.models.playing.player import ModelPlayer

_FIRST_SEED = 0
# Chosen: the API takes larger ones, but nobody wants to type them.
MAX_SEED = 10_000


class EpisodePlayer:
    """Shows one episode after another.

    :param model_name: Model that plays.
    :param player: Films its episodes.
    :param seed: The only one to play; None offers others.
    """

    def __init__(self, model_name: str, player: ModelPlayer, seed: int | None = None) -> None:
        self._model_name = model_name
        self._player = player
        with make_box("stage", aria_live="polite") as self._screen:
            self._image = make_box("", "img", alt=f"An episode of {model_name}", width=600, height=400)
            self._image.on("error", lambda: self._show_problem("The film cannot be shown: its file is gone."), [])
            with make_box("over") as self._waiting:
                ui.spinner(size="40px").props('aria-label="Rendering an episode"')
            self._problem = Text("", "over")
        self._image.set_visibility(False)
        self._problem.set_visibility(False)
        with make_box("row-flex between wrap"):
            with make_box("readings number"):
                self._reward = _make_reading("reward")
                self._n_steps = _make_reading("steps")
                self._seed = _make_reading("seed")
            with make_box("row-flex wrap") as self.controls:
                self._samples = ui.switch("Sample actions")
                self._samples.on_value_change(self.show)
                self._another = make_button("Another episode", self._show_another, "primary", "refresh")
            self._another.set_visibility(seed is None)
        self._current_seed = _FIRST_SEED if seed is None else seed

    async def show(self) -> None:
        """Film the episode of the current seed, and show it."""
        self._wait(True)
        is_deterministic, seed = not self._samples.value, self._current_seed
        try:
            order = FilmOrder("gif", seed, is_deterministic, FILM_STEPS)
            film = await run_in_threadpool(self._player.film, self._model_name, order)
        except ServiceError as error:
            self._show_problem(error.detail)
        else:
            # The same film: the server keeps it, so that the image loads at once.
            query = f"format=gif&seed={seed}&deterministic={str(is_deterministic).lower()}&max_steps={FILM_STEPS}"
            set_attributes(self._image, src=f"/models/{self._model_name}/video?{query}")
            self._image.set_visibility(True)
            self._problem.set_visibility(False)
            self._reward.set_text(format_number(film.reward))
            self._n_steps.set_text(format_count(film.n_steps))
            self._seed.set_text(str(seed))
        self._wait(False)

    async def _show_another(self) -> None:
        self._current_seed = (self._current_seed + 1 + secrets.randbelow(MAX_SEED - 1)) % MAX_SEED
        await self.show()

    def _show_problem(self, problem: str) -> None:
        self._image.set_visibility(False)
        self._problem.set_text(problem)
        self._problem.set_visibility(True)

    def _wait(self, is_waiting: bool) -> None:
        self._waiting.set_visibility(is_waiting)
        self._screen.classes(add="busy" if is_waiting else "", remove="" if is_waiting else "busy")
        set_attributes(self._another, disabled=True if is_waiting else None)


def _make_reading(name: str) -> Text:
    with make_box():
        reading = Text("...", "figure")
        Text(name, "muted small")
    return reading
