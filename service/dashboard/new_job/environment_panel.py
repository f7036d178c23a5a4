"""A card about the environment that is chosen in the form."""

from contextlib import suppress

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.widgets.html_elements import Text, make_box, make_heading, make_note, make_pairs
from service.dashboard.widgets.number_format import format_count, format_number
from service.environments.catalogue import Catalogue
from service.errors import ServiceError
from service.schemas.environments import EnvironmentDescription

_GROUPS = {"branch": "branches from one state", "episode": "whole episodes from one start"}


class EnvironmentPanel:
    """Describes one environment at a time.

    :param catalogue: Describes environments, in up to a second each.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._env_name: str | None = None
        with make_box("card stack", "section", aria_label="The environment", aria_live="polite"):
            with make_box("row-flex between"):
                self._title = make_heading("Environment", 3)
                self._spinner = ui.spinner(size="18px").props('aria-label="Looking at the environment"')
            self._facts = make_box("stack environment")

    def clear(self) -> None:
        """Describe nothing."""
        self._env_name = None
        self._spinner.set_visibility(False)
        self._title.set_text("Environment")
        self._facts.clear()
        with self._facts:
            Text("No environment has this name.", "muted small", "p")

    async def show(self, env_name: str) -> None:
        """Describe an environment, unless another one is chosen meanwhile."""
        if env_name == self._env_name:
            return
        self._env_name = env_name
        self._spinner.set_visibility(True)
        described: EnvironmentDescription | None = None
        # The form says at the field why an environment cannot be used.
        with suppress(ServiceError):
            described = await run_in_threadpool(self._catalogue.describe_environment, env_name)
        if env_name != self._env_name:
            return
        self._spinner.set_visibility(False)
        self._title.set_text(env_name)
        self._facts.clear()
        with self._facts:
            if described is None:
                Text("It cannot be created here, so nothing is known about it.", "muted small", "p")
                return
            make_pairs(_list_facts(described))
            if described.obstacle and described.group_mode is not None:
                make_note(described.obstacle, "warn")


def _list_facts(described: EnvironmentDescription) -> dict[str, str]:
    facts = {
        "Observations": described.observation_space.text,
        "Actions": described.action_space.text,
        "Groups": _GROUPS.get(described.group_mode or "", "cannot be trained"),
        "Episode": None if described.max_episode_steps is None else f"{described.max_episode_steps:,} steps at most",
        "Solved at": None if described.reward_threshold is None else format_number(described.reward_threshold),
        "Preset": None if described.preset is None else _describe_preset(described),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _describe_preset(described: EnvironmentDescription) -> str:
    assert described.preset is not None, "called where there is one"
    steps = f"{format_count(described.preset['n_timesteps'])} steps"
    return steps if described.default_reward_function == "environment" else f"{steps}; not with the shipped rewards"
