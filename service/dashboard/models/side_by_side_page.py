"""Two models beside each other, which play episodes from the same seed."""

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.current_service import get_service
from service.dashboard.frame import show_frame
from service.dashboard.models.episode_player import MAX_SEED, EpisodePlayer
from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_heading, make_link, make_note
from service.http.browser_rules import DASHBOARD_PATH
from service.models.playing.player import ModelPlayer


async def show_side_by_side(left: str = "", right: str = "", seed: int = 0) -> None:
    """Show two models on one seed: all three are in the address.

    :param left: Name of a model, also with ``@`` and a version or an alias; empty chooses the first.
    :param right: Likewise, the last.
    """
    service = get_service()
    folder = service.store.folder
    names, asked = folder.list_names(), [name for name in dict.fromkeys((left, right)) if name]
    missing = await run_in_threadpool(lambda: [name for name in asked if folder.canonicalize(name) is None])
    with show_frame("Side by side", "Models"):
        with make_box("head"):
            with make_box("stack").style("gap: 0"):
                make_heading("Side by side", 1)
                Text("Both play the same seed, so that only the policies differ.", tag="p")
            make_link("All models", f"{DASHBOARD_PATH}/models", "button", "arrow_back")
        if not names:
            make_note("There are no models yet.", "", "info")
            return
        for name in missing:
            make_note(f"There is no model {name}.", "bad", "error")
        chosen = (names[0] if left in ("", *missing) else left, names[-1] if right in ("", *missing) else right)
        choices = list(dict.fromkeys((*names, *chosen)))
        players = _show_players(choices, chosen, service.player, max(0, min(seed, MAX_SEED)))
    for player in players:
        ui.timer(0, player.show, once=True)


def _show_players(names: list[str], chosen: tuple[str, str], player: ModelPlayer, seed: int) -> list[EpisodePlayer]:
    """Show the form that chooses, and a film of each model."""
    with make_box("row-flex wrap", "form", method="get", aria_label="What to compare"):
        for field, label, name in (("left", "Left", chosen[0]), ("right", "Right", chosen[1])):
            _make_choice(field, label, names, name)
        with make_box("row-flex", "label"):
            Text("Seed", "muted")
            make_box("seed-box", "input", type="number", name="seed", min=0, max=MAX_SEED, value=seed)
        make_button("Play", None, "primary", "play_arrow", kind="submit")
    with make_box("split"):
        players = []
        for side, name in zip(("left", "right"), chosen, strict=True):
            with make_box("card stack", "section", aria_label=f"{name}, on the {side}"):
                make_link(name, f"{DASHBOARD_PATH}/models/{name}", "side-name")
                players.append(EpisodePlayer(name, player, seed))
    return players


def _make_choice(field: str, label: str, names: list[str], chosen: str) -> None:
    with make_box("row-flex", "label"):
        Text(label, "muted")
        with make_box("", "select", name=field):
            for name in names:
                option = Text(name, tag="option")
                option.props["value"] = name
                if name == chosen:
                    option.props["selected"] = True
