"""The versions of a model, and buttons that point an alias at one or roll back to it."""

import re
from collections.abc import Callable
from typing import Any

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.app import Service
from service.dashboard.widgets.confirmation import confirm, describe_old_model
from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_link
from service.dashboard.widgets.number_format import format_count, format_number, format_success
from service.dashboard.widgets.toasts import show_error, show_success
from service.errors import ServiceError
from service.http.browser_rules import DASHBOARD_PATH
from service.schemas.fields import ALIAS_PATTERN
from service.schemas.models import ModelVersion, ModelVersions

_ALIAS = re.compile(ALIAS_PATTERN)
# On a phone.
_WRAPPED = "flex-wrap: wrap; gap: 4px 8px"


class VersionList:
    """A row per version, the newest first.

    :param name: Name of the model, without a version.
    :param service: Lists, promotes and rolls back.
    """

    def __init__(self, name: str, service: Service) -> None:
        self._name, self._service = name, service
        Text(
            f"Wherever a model is named, {name}@ALIAS is the version that the alias points at; {name} is the newest.",
            "muted small",
            "p",
        )
        with make_box("row-flex").style(_WRAPPED):
            Text("Promote to", "muted small")
            self._alias = ui.input(value="prod").props('dense outlined aria-label="Alias" autocomplete=off')
        self._rows = make_box("stack", "ul", aria_label="Versions").style("list-style: none; margin: 0; padding: 0")

    async def refresh(self) -> None:
        """List the versions as they are now."""
        try:
            listed = await run_in_threadpool(self._service.promotion.list_versions, self._name)
        except ServiceError as error:
            show_error(error.detail)
            return
        self._rows.clear()
        with self._rows:
            for version in listed.versions:
                self._show(version, listed)

    def _show(self, version: ModelVersion, listed: ModelVersions) -> None:
        title, number = f"Version {version.version}", version.version
        with make_box("stack", "li", aria_label=title).style("gap: 4px"):
            with make_box("row-flex between").style(_WRAPPED):
                with make_box("row-flex").style(_WRAPPED):
                    Text(title).style("font-weight: 600")
                    if version.is_newest:
                        Text("newest", "chip good")
                    for alias in version.aliases:
                        Text(alias, "chip live")
                        make_button(
                            "", self._make_removal(alias), "tiny icon quiet", "close", f"Delete the alias {alias}"
                        )
                with make_box("row-flex").style(_WRAPPED):
                    make_button("Promote", lambda: self._promote(number), "tiny", "label", f"Promote {title}")
                    if not version.is_newest:
                        href = f"{DASHBOARD_PATH}/models/{listed.model_name}@{number}"
                        make_link("Play", href, "button tiny", "play_arrow", aria_label=f"Play {title}")
                        roll_back = f"Roll back to {title}"
                        make_button("Roll back", lambda: self._roll_back(number), "tiny", "restore", roll_back)
            Text(" · ".join(_list_facts(version)), "muted small", "p").style("overflow-wrap: anywhere")

    def _make_removal(self, alias: str) -> Callable[..., Any]:
        async def remove() -> None:
            await self._change(f"{alias} is deleted.", self._service.promotion.delete_alias, self._name, alias)

        return remove

    async def _promote(self, version: int) -> None:
        alias = str(self._alias.value or "").strip()
        if not _ALIAS.fullmatch(alias):
            show_error("an alias has up to 32 letters, digits, '-' and '_', and starts with a letter, such as prod.")
            return
        done = f"{self._name}@{alias} is version {version} now."
        await self._change(done, self._service.promotion.set_alias, self._name, alias, version)

    async def _roll_back(self, version: int) -> None:
        question = f"Roll back to version {version}?"
        old = describe_old_model(self._service.settings.max_model_versions)
        consequence = f"{self._name} then means the policy of version {version}; the newest one {old}."
        if await confirm(question, consequence, "Roll back"):
            done = f"Version {version} is the newest again."
            await self._change(done, self._service.replacement.roll_back, self._name, version)

    async def _change(self, done: str, change: Callable[..., Any], *arguments: Any) -> None:
        try:
            await run_in_threadpool(change, *arguments)
        except ServiceError as error:
            show_error(error.detail)
        else:
            show_success(done)
        await self.refresh()


def _list_facts(version: ModelVersion) -> list[str]:
    evaluation, lineage = version.evaluation, version.lineage
    facts = [
        f"{version.created_at:%Y-%m-%d %H:%M} UTC",
        None if version.num_timesteps is None else f"{format_count(version.num_timesteps)} steps",
        None if evaluation is None else f"reward {format_number(evaluation.mean_reward)}",
        "" if evaluation is None else format_success(evaluation.success_rate),
        None if lineage is None else f"started from {lineage.model_name}",
        None if version.job_id is None else f"job {version.job_id}",
        None if version.sha256 is None else f"sha256 {version.sha256[:12]}",
    ]
    return [fact for fact in facts if fact]
