"""The page of one model: an episode, sliders for an observation, its evaluation and its card."""

import json
from collections.abc import Sequence
from contextlib import suppress

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.current_service import get_service, get_url
from service.dashboard.frame import show_frame
from service.dashboard.models.environment_labels import ask_for_labels, get_labels
from service.dashboard.models.episode_player import EpisodePlayer
from service.dashboard.models.evaluation_panel import EvaluationPanel
from service.dashboard.models.observation_sliders import ObservationSliders
from service.dashboard.models.use_panel import UsePanel
from service.dashboard.models.version_list import VersionList
from service.dashboard.widgets.headline import HeadlineText, describe_model
from service.dashboard.widgets.html_elements import Text, make_box, make_heading, make_link, make_note, make_pairs
from service.dashboard.widgets.number_format import format_count, format_size
from service.errors import ConflictError, NotFoundError, ServiceError
from service.http.browser_rules import DASHBOARD_PATH
from service.models.card import make_card
from service.models.files.folder import FileSignature
from service.models.served import ServedModel
from service.models.store import ModelStore
from service.schemas.models import ModelCard

_CHECK_SECONDS = 2.0


async def show_model(name: str) -> None:
    """Show the page of a model."""
    service = get_service()
    try:
        card = await run_in_threadpool(
            lambda: make_card(name, service.store.inspect_file(name), service.player.find_evaluation)
        )
        model = await run_in_threadpool(service.store.get, name)
    except ServiceError as error:
        with show_frame("Model", "Models"):
            trainer = service.find_trainer(name) if isinstance(error, NotFoundError) else None
            if trainer is not None:
                make_note(f"There is no model {name} yet: its job is {trainer.status}, and saves it when it completes.")
            else:
                is_missing = isinstance(error, NotFoundError)
                make_note(f"There is no model {name}." if is_missing else error.detail, "bad", "error")
            with make_box("row-flex wrap"):
                if trainer is not None:
                    job = f"{DASHBOARD_PATH}/jobs/{trainer.job_id}"
                    make_link("Watch its training", job, "button primary", "show_chart")
                make_link("All models", f"{DASHBOARD_PATH}/models", "button", "arrow_back")
        ui.context.client.status_code = error.status_code
        return
    env_name = None if card.wrappers else card.env_name
    labels = get_labels(env_name)
    with show_frame(name, "Models"):
        download = _show_head(card)
        watch = _FileWatch(service.store, name, model, card.sha256)
        with make_box("split"):
            with make_box("stack wide"):
                with make_box("card stack", "section", aria_label="Watch it play"):
                    make_heading("Watch it play")
                    player = EpisodePlayer(name, service.player)
                with make_box("card stack", "section", aria_label="How good is it?"):
                    make_heading("How good is it?")
                    panel = EvaluationPanel(name, service.player)
            with make_box("stack wide"):
                with make_box("card stack", "section", aria_label="Try an observation"):
                    make_heading("Try an observation")
                    sliders = ObservationSliders(model, labels, _describe_value(card), card.value_check)
                with make_box("card stack", "section", aria_label="Versions"):
                    make_heading("Versions")
                    versions = VersionList(name.partition("@")[0], service)
                with make_box("card stack", "section", aria_label="Use it"):
                    make_heading("Use it")
                    needs_key = service.settings.api_key is not None
                    use = UsePanel(name, model.actor.observation_space, get_url(), needs_key)
                with make_box("card stack", "section", aria_label="Policy card"):
                    make_heading("Policy card")
                    _show_facts(card)
    watch.controls = (download, player.controls, panel.controls, use.controls)
    ui.timer(_CHECK_SECONDS, watch.check)
    ui.timer(0, sliders.answer, once=True)

    async def ask_workers() -> None:
        """Ask one after the other, so that a page takes one worker only."""
        await player.show()
        if env_name is not None and not labels.observations:
            await sliders.label(await run_in_threadpool(ask_for_labels, service.catalogue, env_name))

    ui.timer(0, ask_workers, once=True)
    ui.timer(0, versions.refresh, once=True)


class _FileWatch:
    """Says when the model's file is deleted or replaced, and then hides the controls that need it.

    A file that becomes an earlier version is still the one that its number and its aliases mean.

    :param name: What the page's address calls the model: its name, or one with ``@`` and a version or an alias.
    :param model: The model that the page shows.
    :param sha256: The SHA-256 of its file.
    """

    def __init__(self, store: ModelStore, name: str, model: ServedModel, sha256: str | None) -> None:
        self._store, self._name = store, name
        # The file that the name means, and its content, which is read only if that has another place or signature.
        self._place: tuple[str | None, FileSignature | None] = model.name, model.signature
        self._shown_sha256 = self._sha256 = sha256
        self._is_there = True
        self.controls: Sequence[ui.element] = ()
        self._deleted = make_note("This model was deleted. The page shows what was read before.", "bad", "error")
        self._replaced = make_note("This model was replaced. Reload the page to see the new one.", "warn", "info")
        self._show(is_there=True, is_same=True)

    async def check(self) -> None:
        """Look at the file."""
        await run_in_threadpool(self._look)
        self._show(self._is_there, self._is_there and self._sha256 == self._shown_sha256)

    def _look(self) -> None:
        folder = self._store.folder
        place = folder.canonicalize(self._name), folder.get_signature(self._name)
        if place != self._place:
            with suppress(ConflictError):  # the disk refuses; the next look tries again
                file = self._store.find_file(self._name)
                self._is_there, self._place = file is not None, place
                self._sha256 = None if file is None else file.sha256

    def _show(self, is_there: bool, is_same: bool) -> None:
        self._deleted.set_visibility(not is_there)
        self._replaced.set_visibility(is_there and not is_same)
        for control in self.controls:
            control.set_visibility(is_same)


def _show_head(card: ModelCard) -> ui.element:
    with make_box("head"):
        with make_box("stack").style("gap: 0; min-width: 0"):
            Text(card.name, tag="h1").style("overflow-wrap: anywhere")
            steps = "" if card.num_timesteps is None else f"trained for {format_count(card.num_timesteps)} steps"
            Text(" · ".join(filter(None, (card.env_name, steps))), tag="p")
            headline = describe_model(card)
            if headline is not None:
                HeadlineText().show(headline)
        with make_box("row-flex wrap"):
            href = f"/models/{card.name}/file"
            download = make_link("Download", href, "button", "download", download=f"{card.name}.zip")
            beside = f"{DASHBOARD_PATH}/side-by-side?left={card.name}"
            make_link(
                "Compare with another", beside, "button", "compare", aria_label=f"Play {card.name} beside another"
            )
            make_link("All models", f"{DASHBOARD_PATH}/models", "button", "arrow_back")
    return download


def _show_facts(card: ModelCard) -> None:
    spaces = {"Observations": card.observation_space, "Actions": card.action_space}
    facts = {
        "Environment": card.env_name,
        "Reward function": _name_reward(card),
        **{name: None if space is None else space.text for name, space in spaces.items()},
        "Weights": None if card.n_parameters is None else format_count(card.n_parameters),
        "Epochs": None if card.n_updates is None else format_count(card.n_updates),
        "File": format_size(card.n_bytes),
        "Saved": f"{card.modified_at:%Y-%m-%d %H:%M} UTC",
        "SHA-256": card.sha256,
        "Written by": None if card.versions is None else ", ".join(f"{k} {v}" for k, v in card.versions.items()),
    }
    make_pairs({name: fact for name, fact in facts.items() if fact})
    if card.hyperparameters:
        with make_box("group", "details"):
            with make_box("", "summary"):
                Text("Hyperparameters")
            Text(json.dumps(card.hyperparameters, indent=2), "code", "pre")


def _name_reward(card: ModelCard) -> str | None:
    reward = card.reward_function
    return " + ".join(reward) if isinstance(reward, list) else reward


def _describe_value(card: ModelCard) -> str:
    """Say what a model's values mean: the reward that they sum, and its discount."""
    discount = "" if card.value_check is None else f", discounted by {card.value_check.gamma:g} per step"
    return f"value: the total {_name_reward(card) or 'environment'} reward expected from here{discount}"
