"""The page of one sweep: which setting is best and how sure that is, parallel coordinates, the table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.current_service import get_service
from service.dashboard.frame import show_frame
from service.dashboard.sweeps.parallel_coordinates import draw_parallel_coordinates
from service.dashboard.sweeps.sweep_table import describe_spread, spell_value, write_sweep_table
from service.dashboard.sweeps.sweeps_page import TONES, describe_counts
from service.dashboard.widgets.confirmation import confirm
from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_heading, make_link, make_note
from service.dashboard.widgets.number_format import format_count, format_items, format_number, format_success
from service.dashboard.widgets.toasts import show_error
from service.errors import NotFoundError, ServiceError
from service.http.browser_rules import DASHBOARD_PATH
from service.models.files.folder import FileSignature, ModelFolder
from service.schemas.sweeps import BestSetting, SettingRow, SweepDescription, SweepStatus, Trial
from service.sweeps.registry import SweepRegistry

_REFRESH_SECONDS = 1.0
# What the page says of an end that the table does not explain: the text, the tone and the icon.
_ENDS = {
    "budget": ("The sweep ended because its budget did not allow another job.", "", "savings"),
    "no_evaluation": (
        "The sweep ended because no job of its last round completed with an evaluation.",
        "warn",
        "leaderboard",
    ),
}


async def show_sweep(sweep_id: str) -> None:
    """Show the page of a sweep."""
    registry = get_service().sweeps
    try:
        sweep = registry.describe(sweep_id)
    except NotFoundError as error:
        with show_frame("Sweep", "Sweeps"):
            make_heading("There is no such sweep", 1)
            make_note(error.detail, "warn", "search_off")
            make_link("All sweeps", f"{DASHBOARD_PATH}/sweeps", "button")
        ui.context.client.status_code = error.status_code
        return
    with show_frame(sweep.name, "Sweeps"):
        shown = _Sweep(registry, sweep)
    ui.timer(_REFRESH_SECONDS, shown.refresh)  # at once, too: after the page, for it reads the models' files


class _Sweep:
    """One sweep, kept up to date."""

    def __init__(self, registry: SweepRegistry, sweep: SweepDescription) -> None:
        self._registry, self._sweep_id = registry, sweep.sweep_id
        self._models = TrialModels(get_service().store.folder)
        self._shown: Any = None
        with make_box("head"):
            with make_box("stack").style("gap: 0"):
                with make_box("row-flex wrap"):
                    make_heading(sweep.name, 1)
                    self._status = Text("", "chip")
                self._facts = Text("", tag="p")
            with make_box("row-flex wrap"):
                self._stop = make_button("Stop all jobs", self._ask_and_stop, "danger", "stop")
                self._resume = make_button("Resume", self._resume_sweep, "", "play_arrow")
        self._content = make_box("stack wide")

    async def refresh(self) -> None:
        """Show the sweep as it is now."""
        try:
            sweep, can_stop = self._registry.describe(self._sweep_id), self._registry.can_stop(self._sweep_id)
            trials = [trial for row in sweep.settings for trial in row.trials]
            models = await run_in_threadpool(self._models.find, trials)
        except ServiceError:  # it was deleted in the meantime, or the disk is; what is shown stays
            return
        self._facts.set_text(
            f"{sweep.env_name}, {sweep.method}, {describe_counts(sweep)}, {format_count(sweep.timesteps)} steps"
        )
        # Steps alone change all the time.
        earned = [(row.number, row.mean_reward) for row in sweep.settings]
        names = [trial.model_name for trial in trials]
        look = (sweep.status, can_stop, sweep.held_by, sweep.counts, earned, names, models)
        if look == self._shown:
            return
        self._shown = look
        self._status.set_text(str(sweep.status))
        self._status.classes(replace=f"chip {TONES.get(sweep.status, '')}")
        self._stop.set_visibility(can_stop)
        self._resume.set_visibility(sweep.status in (SweepStatus.STOPPED, SweepStatus.INTERRUPTED))
        self._content.clear()
        with self._content:
            _show_content(sweep, models)

    async def _ask_and_stop(self) -> None:
        consequence = "They save what they have learned, and the best model so far is kept. The sweep can be resumed."
        if await confirm("Stop all jobs of this sweep?", consequence, "Stop all"):
            await self._change(self._registry.stop)

    async def _resume_sweep(self) -> None:
        await self._change(self._registry.resume)

    async def _change(self, change: Any) -> None:
        try:
            await run_in_threadpool(change, self._sweep_id)
        except ServiceError as error:
            show_error(error.detail)
        await self.refresh()


class TrialModels:
    """Finds the models of trials, which may have become earlier versions of their names since."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        # By name: what was looked for and what had the name then, and what names the model's file now, if anything.
        self._found: dict[str, tuple[tuple[str | None, FileSignature | None], str | None]] = {}

    def find(self, trials: Iterable[Trial]) -> dict[str, str]:
        """Return what names the models now, by the names they were saved under; those that are gone are left out.

        This reads the files that have changed since the last call.
        """
        models = {}
        for trial in trials:
            if (name := trial.model_name) is None:
                continue
            wanted = trial.sha256, self._folder.get_signature(name)
            before, reference = self._found.get(name, (None, None))
            if before != wanted or (reference is not None and self._folder.get_signature(reference) is None):
                reference = self._folder.find_reference(name, trial.sha256)
                self._found[name] = wanted, reference
            if reference is not None:
                models[name] = reference
        return models


def _show_content(sweep: SweepDescription, models: Mapping[str, str]) -> None:
    if sweep.held_by is not None:
        make_note(f"The next job waits: {sweep.held_by}", "warn", "hourglass_empty")
    if sweep.ended_by in _ENDS:
        make_note(*_ENDS[sweep.ended_by])
    if sweep.best is not None:
        _show_best(sweep.best, sweep.settings, models)
    drawing = draw_parallel_coordinates(sweep.settings)
    if drawing:
        with make_box("card coordinates-card", "section", aria_label="Parallel coordinates"):
            make_heading("Every setting")
            Text(
                "One line per evaluated setting, the best one in bold; the axis on the right is its reward.",
                "hint",
            )
            with make_box("scroll", tabindex=0, role="group", aria_label="Chart of all settings"):
                ui.html(drawing, sanitize=False)
    with make_box("card scroll", "section", aria_label="Settings", tabindex=0):
        ui.html(write_sweep_table(sweep, models), sanitize=False)


def _show_best(best: BestSetting, rows: Sequence[SettingRow], models: Mapping[str, str]) -> None:
    row, is_alone = rows[0], len(rows) == 1
    with make_box("card best-setting", "section", aria_label="Result" if is_alone else "Best setting"):
        with make_box("row-flex baseline"):
            Text(format_number(best.mean_reward), "figure")
            Text(f"mean evaluated reward, {format_items(row.n_seeds, 'seed')}", "muted small")
            for words in (describe_spread(row), format_success(row.success_rate)):
                if words:
                    Text(words, "muted small")
        Text(", ".join(f"{name} {spell_value(value)}" for name, value in best.values.items()), "number")
        if not is_alone:  # the text would only say the same figures again
            Text(best.text, f"verdict {'good' if best.is_clear else 'warn'}", "p")
        if best.model_name is not None and best.model_name in models:
            address = f"{DASHBOARD_PATH}/models/{models[best.model_name]}"
            make_link("Play its best policy", address, "button tiny primary", "play_arrow")
