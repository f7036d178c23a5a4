"""The page of all models, as cards."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.current_service import get_service
from service.dashboard.frame import show_frame
from service.dashboard.models.evaluation_panel import EVALUATION_SEED, N_EPISODES
from service.dashboard.widgets.confirmation import confirm, describe_old_model
from service.dashboard.widgets.headline import Headline, HeadlineText, describe_figures, describe_model
from service.dashboard.widgets.html_elements import (
    Text,
    make_box,
    make_button,
    make_heading,
    make_link,
    make_pairs,
    set_attributes,
)
from service.dashboard.widgets.number_format import format_count, format_size
from service.dashboard.widgets.toasts import show_error, show_success
from service.errors import ConflictError, NotFoundError, ServiceError
from service.http.browser_rules import DASHBOARD_PATH
from service.models.card import make_card
from service.models.files.folder import FileSignature
from service.models.store import ModelEntry
from service.schemas.jobs import EpisodeFigures
from service.schemas.models import ModelCard, ModelStatus

# A card, and the evaluation that the server has made of its file since it started, if any.
_CardParts = tuple[ModelCard, EpisodeFigures | None]
_REFRESH_SECONDS = 2.0
_PAGE_SIZE = 24
_ORDERS = {"name": "By name", "newest": "Newest first"}
# Sends the chosen file to the API, so that the same rules hold for all uploads.
_UPLOAD = """
async (event) => {
  const input = event.target, file = input.files[0];
  if (!file) return;
  // Browsers call a second download "name (1).zip", which is not a valid name for a model.
  const stem = file.name.replace(/\\.zip$/i, "").replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 100);
  const name = stem.replace(/^[^A-Za-z0-9]+|[.-]+$/g, "") || "model";
  globalThis.grpoUpload = async (overwrite) => {
    const upload = { name, overwrite, status: 0, detail: "the connection broke, or the file has changed." };
    try {
      const answer = await fetch(`/models/${encodeURIComponent(name)}/file?overwrite=${overwrite}`, {
        method: "PUT", headers: { "Content-Type": "application/zip" }, body: file,
      });
      // A proxy answers in words of its own.
      const { detail } = await answer.json().catch(() => ({}));
      Object.assign(upload, { status: answer.status, detail: detail ?? `the answer was HTTP ${answer.status}.` });
    } catch {} // it was not answered
    emit(upload);
  };
  input.value = "";
  await globalThis.grpoUpload(false);
}
"""


def show_models() -> None:
    """Show the page of models."""
    with show_frame("Models", "Models"):
        cards = _ModelCards()
    ui.timer(_REFRESH_SECONDS, cards.refresh)


class _ModelCards:
    """One card per model that the search finds; only the first ones until more are asked for."""

    def __init__(self) -> None:
        self._service = get_service()
        self._n_listed = _PAGE_SIZE
        # Files, search and number of all models when the cards were made.
        self._shown: tuple[list[tuple[str, FileSignature | None]], str, int] | None = None
        # One refresh at a time: otherwise an older one could end last, and its cards would stay.
        self._refreshing = asyncio.Lock()
        with make_box("head"):
            with make_box("stack").style("gap: 0"):
                make_heading("Models", 1)
                self._summary = Text("", tag="p")
            with make_box("row-flex wrap"):
                self._search = ui.input(placeholder="Search by name").classes("search")
                self._search.props('outlined dense type=search clearable aria-label="Search by name"')
                self._search.on_value_change(self.refresh)
                self._order = ui.select(_ORDERS, value="name", on_change=self.refresh)
                self._order.props('outlined dense options-dense aria-label="Order of the models"')
                chooser = make_box("visually-hidden", "input", type="file", accept=".zip", aria_label="Model file")
                chooser.props["tabindex"] = -1
                chooser.on("change", self._note_upload, js_handler=_UPLOAD)
                button = make_button("Upload", None, "", "upload", "Upload a model file")
                button.on("click", js_handler=f"() => getHtmlElement({chooser.id}).click()")
        self._cards = make_box("models", "ul")
        self._more = make_button("Show more", self._list_more, "quiet")
        self._more.set_visibility(False)

    async def refresh(self, *, anew: bool = False) -> None:
        """Show the models that are there now.

        :param anew: Whether to make the cards again even if the list is the same.
        """
        async with self._refreshing:
            search = (self._search.value or "").casefold()
            is_newest_first = self._order.value == "newest"
            entries = await run_in_threadpool(self._list_entries, is_newest_first)
            fitting = [entry for entry in entries if search in entry.name.casefold()]
            listed = fitting[: self._n_listed]
            folder = self._service.store.folder
            files = [(entry.name, folder.get_signature(entry.name)) for entry in listed]
            wanted = (files, search, len(entries))
            if wanted == self._shown and not anew:
                return
            cards = await run_in_threadpool(self._make_cards, listed)
            self._shown = wanted
            self._summary.set_text(f"{len(entries)} saved" if not search else f"{len(fitting)} of {len(entries)} saved")
            self._more.set_visibility(len(fitting) > len(listed))
            self._show_cards(cards, is_searched=bool(entries))

    def _list_entries(self, is_newest_first: bool) -> list[ModelEntry]:
        store = self._service.store
        entries = sort_by_name(store.list_models())
        return sort_newest_first(entries, store.folder.get_signature) if is_newest_first else entries

    def _show_cards(self, cards: list[_CardParts], is_searched: bool) -> None:
        self._cards.clear()
        with self._cards:
            for card, evaluation in cards:
                self._show_card(card, evaluation)
            if not cards:
                _show_empty(is_searched)

    async def _list_more(self) -> None:
        self._n_listed += _PAGE_SIZE
        await self.refresh()

    def _make_cards(self, entries: list[ModelEntry]) -> list[_CardParts]:
        cards = []
        for entry in entries:
            with suppress(NotFoundError):  # deleted since it was listed
                cards.append(self._make_card(entry.name))
        return cards

    def _make_card(self, name: str) -> _CardParts:
        found: list[EpisodeFigures | None] = [None]

        def find(signature: FileSignature) -> EpisodeFigures | None:
            found.append(self._service.player.find_evaluation(signature))
            return found[-1]

        store = self._service.store
        try:
            file = store.inspect_file(name)
        except ConflictError:  # the disk refuses this one, and the others have their cards all the same
            file = store.describe_unread(name)
        return make_card(name, file, find), found[-1]

    def _show_card(self, card: ModelCard, evaluation: EpisodeFigures | None) -> None:
        with make_box("card model", "li", aria_label=f"Model {card.name}"):
            with make_box("row-flex between"):
                Text(card.name, "ellipsis", "h2").props["title"] = card.name
                if card.status in (ModelStatus.CORRUPT, ModelStatus.UNSAFE):
                    Text(str(card.status), "chip bad")
            headline = HeadlineText()
            headline.show(describe_model(card) or Headline("", "", _describe_missing_evaluation(card)))
            make_pairs(_list_facts(card, evaluation))
            self._show_actions(card)

    def _show_actions(self, card: ModelCard) -> None:
        name = card.name
        with make_box("actions"):
            if card.n_parameters is not None:
                href = f"{DASHBOARD_PATH}/models/{name}"
                make_link("Play", href, "button tiny primary", "play_arrow", aria_label=f"Play {name}")
                evaluate = make_button("Evaluate", None, "tiny", "fact_check", f"Evaluate {name}")
                evaluate.on("click", lambda: self._evaluate(name, evaluate), [])
            make_box("grow")
            file = {"download": f"{name}.zip", "aria_label": f"Download {name}"}
            make_link("", f"/models/{name}/file", "button tiny icon quiet", "download", **file)
            make_button("", lambda: self._delete(name), "tiny icon danger quiet", "delete", f"Delete {name}")

    async def _evaluate(self, name: str, button: ui.element) -> None:
        set_attributes(button, disabled=True)
        try:
            await run_in_threadpool(self._service.player.evaluate, name, N_EPISODES, EVALUATION_SEED, True)
        except ServiceError as error:
            show_error(error.detail)
        else:
            show_success(f"{name} is evaluated.", "Play it", f"{DASHBOARD_PATH}/models/{name}")
        set_attributes(button, disabled=None)
        await self.refresh(anew=True)

    async def _delete(self, name: str) -> None:
        consequence = "This removes its file, its earlier versions and its aliases from the server for good."
        if not await confirm(f"Delete {name}?", consequence, "Delete the model"):
            return
        try:
            await run_in_threadpool(self._service.registry.delete_model, name)
        except ServiceError as error:
            show_error(error.detail)
        else:
            show_success(f"{name} is deleted.")
        await self.refresh()

    async def _note_upload(self, event: Any) -> None:
        name, status, detail = event.args["name"], event.args["status"], event.args["detail"]
        if status == 409 and not event.args["overwrite"] and self._service.store.exists(name):
            old = describe_old_model(self._service.settings.max_model_versions)
            consequence = f"A model with this name exists. The new file replaces it; the old one {old}."
            if await confirm(f"Replace {name}?", consequence, "Replace the model"):
                ui.run_javascript("grpoUpload(true)")
            return
        if status == 200:
            show_success(f"{name} is uploaded.", "Play it", f"{DASHBOARD_PATH}/models/{name}")
        else:
            show_error(f"The file {name} is not uploaded: {detail}")
        await self.refresh(anew=True)


def sort_by_name(entries: list[ModelEntry]) -> list[ModelEntry]:
    """Sort models as people look for them: small letters beside capital ones."""
    return sorted(entries, key=lambda entry: (entry.name.casefold(), entry.name))


def sort_newest_first(
    entries: list[ModelEntry], get_signature: Callable[[str], FileSignature | None]
) -> list[ModelEntry]:
    """Sort models by when their files were saved."""

    def find_age(entry: ModelEntry) -> int:
        _, modified_ns, _ = get_signature(entry.name) or (0, 0, 0)  # it may be gone by now
        return -modified_ns

    return sorted(entries, key=find_age)


def _show_empty(is_searched: bool) -> None:
    with make_box("empty", "li").style("grid-column: 1 / -1"):
        ui.icon("smart_toy").props("aria-hidden=true")
        if is_searched:
            Text("No models match.")
        else:
            Text("No models yet. A job saves one when it ends.")
            make_link("Train the first one", f"{DASHBOARD_PATH}/new", "button primary", "add")


def _describe_missing_evaluation(card: ModelCard) -> str:
    if card.status is ModelStatus.UNSAFE:
        return "Not written by GRPO, so it is never loaded."
    return "Its file is damaged." if card.status is ModelStatus.CORRUPT else "Not evaluated yet"


def _list_facts(card: ModelCard, evaluation: EpisodeFigures | None) -> dict[str, str | datetime]:
    reward = card.reward_function
    unknown = None if card.n_parameters is None else "-"  # a row in every card: they are as high as each other
    has_other = evaluation is not None and card.final_evaluation is not None
    facts = {
        "Evaluated here": describe_figures(evaluation) if evaluation is not None and has_other else None,
        "Environment": card.env_name,
        "Reward function": " + ".join(reward) if isinstance(reward, list) else reward or unknown,
        "Steps": None if card.num_timesteps is None else format_count(card.num_timesteps),
        "File": format_size(card.n_bytes),
        "Saved": card.modified_at,
        "SHA-256": None if card.sha256 is None else f"{card.sha256[:12]}…",
    }
    return {name: fact for name, fact in facts.items() if fact is not None}
