"""The dashboard in a browser that can reach nothing but the service, which asks for a key."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import gymnasium as gym
import pytest
from fastapi import FastAPI
from nicegui import core
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from api import create_app
from service.errors import ConflictError
from service.jobs.job import Job
from service.jobs.registry import JobRegistry
from service.schemas.training import TrainRequest
from service.settings import Settings
from tests.browser import ARTEFACTS, drive, list_addresses, needs_driver
from tests.conftest import RegisterEnv
from tests.models import make_model
from tests.service.dashboard.page import Page, be_patient
from tests.support import PATIENCE_SECONDS, serve, wait_until

KEY = "a key of 22 characters"
NAMED_ROLES = {
    "button",
    "checkbox",
    "combobox",
    "image",
    "link",
    "progressbar",
    "searchbox",
    "slider",
    "spinbutton",
    "switch",
    "textbox",
}
# With values that are shown.
VALUE_FIGURES = {"gamma": 0.99, "n_states": 10, "correlation": 0.9, "error": 0.1, "spread": 0.5}
VALUE_CHECK = {"is_meaningful": True, "reward_scale": 1.0, **VALUE_FIGURES, "lowest": -100.0, "highest": 100.0}
READY = {"env_name": "CartPole-v1", "value_check": VALUE_CHECK}
PAGES = ["", "new", "sweeps", "models", "models/ready", "server"]
FILM = "return document.querySelector('.stage img')?.naturalWidth > 0"  # whether there is one

pytestmark = needs_driver


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """A service with a model, a key, and room for two jobs."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "ready.zip").write_bytes(make_model("CartPole-v1").to_bytes(**READY))
    (folder / "unwanted.zip").write_bytes(make_model("CartPole-v1", seed=1).to_bytes(env_name="CartPole-v1"))
    settings: dict[str, Any] = {"max_running_jobs": 2, "executor": "thread", "task_seconds": PATIENCE_SECONDS}
    return create_app(Settings(models_dir=folder, api_key=KEY, **settings))


@pytest.fixture(scope="module")
def origin(app: FastAPI) -> Iterator[str]:
    """Where the service is."""
    with serve(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def driver(origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser that has logged in."""
    with drive(tmp_path_factory.mktemp("profile"), 1440, 1100) as driver:
        be_patient(driver)
        driver.get(f"{origin}/dashboard")
        assert urlsplit(driver.current_url).path == "/login"
        ARTEFACTS.mkdir(exist_ok=True)
        driver.save_screenshot(ARTEFACTS / "login.png")
        # The page's first frame gives the field the focus.
        wait_until(lambda: driver.switch_to.active_element.tag_name == "input")
        driver.switch_to.active_element.send_keys(KEY, Keys.ENTER)
        wait_until(lambda: urlsplit(driver.current_url).path == "/dashboard/")
        yield driver


@pytest.fixture
def page(driver: webdriver.Chrome, origin: str) -> Iterator[Page]:
    """The browser; afterwards no other host was asked for anything, and the console is clean."""
    page = Page(driver, origin)
    page.emulate()
    yield page
    assert list_addresses(driver) == {urlsplit(origin).netloc}
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []  # type: ignore[no-untyped-call]


@pytest.fixture
def registry(app: FastAPI) -> JobRegistry:
    """The jobs of the service."""
    registry: JobRegistry = app.state.service.registry
    return registry


@pytest.fixture(autouse=True)
def _no_job_left(registry: JobRegistry) -> Iterator[None]:
    """End all jobs: one that saved its model later would change the lists that the next test clicks in."""
    yield
    for job in registry.list_jobs():
        if isinstance(job, Job) and not job.status.is_final:
            with suppress(ConflictError):  # it is being saved
                job.stop()
            assert job.finished.wait(PATIENCE_SECONDS)


def fill(page: Page, name: str, value: str) -> WebElement:
    """Type into a field of the form, by its name in requests; return its input."""
    field: WebElement = page.run(
        "return [...document.querySelectorAll('.field')].find((box) => "
        "box.querySelector('code').textContent === arguments[0])?.querySelector('input')",
        name,
    )
    page.run("arguments[0].closest('details')?.setAttribute('open', '')", field)
    field.send_keys(value)
    return field


def test_a_policy_is_trained_by_clicking_and_then_watched(page: Page, registry: JobRegistry) -> None:
    page.open("")
    page.click(".topbar a", "New job")
    page.find("h1", "New job")
    fill(page, "total_timesteps", "4000")
    fill(page, "model_name", "clicked")
    fill(page, "seed", "1")
    page.find("pre", '"model_name": "clicked"')
    page.photograph("form")
    page.click("button", "Start training")
    page.find(".job")
    assert registry.get("latest").finished.wait(PATIENCE_SECONDS)  # looks at the page would take its time from it
    page.find(".job .chip", "completed")
    assert page.find(".job .headline").text.splitlines()[-1].startswith("training mean")
    read = "const jobs = grpoCurves.read('rollout/ep_rew_mean'); return jobs[0].points.at(-1)[0] >= 4000 && jobs"
    (curve,) = page.wait(read)
    rewards = [reward for _, reward in curve["points"]]
    assert curve["name"] == "clicked"
    assert len(rewards) > 10
    assert rewards[-1] > 2 * rewards[0]
    page.run(
        "const slider = document.querySelector('.smoothing input'); slider.value = 0;"
        "slider.dispatchEvent(new Event('input'))"
    )
    drawn = "return Object.fromEntries(grpoCurves.options()[0].series.map((line) => [line.name, line]))"
    wait_until(lambda: page.wait(drawn)["clicked, training mean"]["data"] == curve["points"])
    lines = page.run(drawn)
    assert lines["clicked, training mean"]["lineStyle"]["width"] < lines["clicked, evaluation"]["lineStyle"]["width"]
    page.wait(FILM)
    page.find(".line-key li", "final evaluation, of other episodes")
    ticks = page.run("return grpoCurves.options().map((option) => option.xAxis[0].splitNumber)")
    assert ticks == [5, 2, 2, 2]  # the small ones have no room for more labels
    page.find(".stage + p", "The saved policy: reward")
    page.photograph("curves")
    page.run("document.querySelector('.stage img').dispatchEvent(new Event('error'))")
    page.find(".stage .over", "The film cannot be shown")

    page.click(".job a", "Play")
    page.find("h1", "clicked")
    page.wait(FILM)
    assert float(page.read(".readings .figure")) >= 9
    first = page.run("return document.querySelector('.stage img').src")
    page.click("button", "Another episode")
    wait_until(lambda: page.run("return document.querySelector('.stage img').src") != first)
    page.photograph("model")


def test_while_the_first_film_is_made_the_stage_says_only_that(
    page: Page, app: FastAPI, registry: JobRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    films, may_go_on = app.state.service.films, threading.Event()
    film = films.film

    def wait_and_film(*arguments: Any) -> Any:
        assert may_go_on.wait(PATIENCE_SECONDS)
        return film(*arguments)

    monkeypatch.setattr(films, "film", wait_and_film)
    app.state.service.admission.start_job(TrainRequest(model_name="filmed", total_timesteps=10_000_000), None)
    job = registry.get("latest")
    try:
        page.open(f"jobs/{job.job_id}")
        page.find(".stage .over", "The first film comes with the first checkpoint")
        job.stop()
        page.find(".stage .over", "The saved policy is being filmed.")
        shown = "return [...document.querySelectorAll('.stage .over')].filter((box) => box.offsetParent).length"
        wait_until(lambda: page.run(shown) == 1)
        page.photograph("being-filmed")
    finally:
        may_go_on.set()
    page.wait(FILM)


def test_sliders_show_at_once_what_the_policy_makes_of_an_observation(page: Page) -> None:
    page.open("models/ready")
    read = "return [...document.querySelectorAll(arguments[0])].map((text) => text.textContent)"
    wait_until(lambda: len(page.run(read, ".probability .number")) == 2)
    shares = page.run(read, ".probability .number")
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=0.2)
    value = page.run(read, ".bars + .row-flex .number")
    page.run("document.querySelectorAll('.q-slider [tabindex]')[2].focus()")
    page.press(*[Keys.ARROW_RIGHT] * 20)
    field = page.driver.find_elements(By.CSS_SELECTOR, ".slider input.number")[2]
    wait_until(lambda: field.get_attribute("value") == "0.0838")  # 20 steps of 0.4189 / 100
    wait_until(lambda: page.run(read, ".bars + .row-flex .number") != value)

    def type_over(text: str) -> None:
        # At once, since the answer to what was typed before may come between two letters.
        page.run("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))", field, text)

    value = page.run(read, ".bars + .row-flex .number")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("-0.1", Keys.ENTER)
    wait_until(lambda: page.run(read, ".bars + .row-flex .number") != value)
    type_over("9")
    page.find(".slider .message", "The maximum here is 0.41887903.")
    wait_until(lambda: field.get_attribute("value") == "0.41887903")
    type_over("x")
    page.find(".slider .message", "“x” is not a number.")
    wait_until(lambda: field.get_attribute("value") == "0.41887903")
    place = page.run("return document.querySelectorAll('[role=slider]')[2].getAttribute('aria-valuenow')")
    assert float(place) == pytest.approx(0.41887903)


def test_a_cosine_and_its_sine_are_always_of_one_angle(page: Page, app: FastAPI) -> None:
    file = app.state.service.settings.models_dir / "swinging.zip"
    file.write_bytes(make_model("Pendulum-v1").to_bytes(**READY | {"env_name": "Pendulum-v1"}))
    try:
        page.open("models/swinging")
        page.find(".slider", "cosine of angle")
        read = "return [...document.querySelectorAll('.slider input.number')].map((field) => Number(field.value))"
        assert page.run(read) == [1, 0, 0]
        page.run("document.querySelectorAll('.q-slider [tabindex]')[0].focus()")
        page.press(*[Keys.ARROW_LEFT] * 40)
        wait_until(lambda: page.run(read) == [0.6, 0.8, 0])  # 40 steps of 0.01
        page.photograph("sliders-angle")
        page.click("button", "Centre")
        wait_until(lambda: page.run(read) == [1, 0, 0])
        page.click("button", "Random")
        wait_until(lambda: page.run(read) != [1, 0, 0])
        cosine, sine, _ = page.run(read)
        assert cosine**2 + sine**2 == pytest.approx(1, abs=0.01)
    finally:
        file.unlink()


def test_the_page_of_a_model_that_is_not_saved_yet_leads_to_its_training(page: Page, app: FastAPI) -> None:
    job = app.state.service.admission.start_job(TrainRequest(model_name="unborn", total_timesteps=10_000_000), None)
    page.open("models/unborn")
    page.find(".note", "There is no model unborn yet: its job is ")
    page.driver.get_log("browser")  # type: ignore[no-untyped-call]  # of the status 404
    page.click(".page a", "Watch its training")
    wait_until(lambda: page.driver.current_url.endswith(f"/jobs/{job.job_id}"))
    page.find("h1", "unborn")
    job.stop()  # or it would take the other tests' time
    assert job.finished.wait(PATIENCE_SECONDS)


def test_the_newest_models_are_shown_first_on_demand(page: Page, app: FastAPI) -> None:
    os.utime(app.state.service.settings.models_dir / "unwanted.zip", (2**31, 2**31))
    first = "return document.querySelector('.model h2')?.textContent === 'unwanted'"
    page.open("models")
    page.find(".model h2", "ready")
    assert not page.run(first)
    page.click("[aria-label='Order of the models']")
    page.click(".q-item", "Newest first")
    page.wait(first)
    page.photograph("models-newest")


def test_ages_grow_although_nothing_happens(page: Page) -> None:
    page.open("models")
    page.find("[aria-label='Model ready'] grpo-age", "just now")
    page.run("globalThis.now = Date.now; Date.now = () => now() + 3 * 3600e3")
    page.run("document.dispatchEvent(new Event('visibilitychange'))")  # as does every minute
    page.find("[aria-label='Model ready'] grpo-age", "3 h ago")


def test_two_models_play_the_same_seed_beside_each_other(page: Page) -> None:
    page.open("models/ready")
    page.click("a", "Compare with another")
    page.find("h1", "Side by side")
    page.open("side-by-side?left=ready&right=unwanted&seed=3")
    page.wait(
        "return [...document.querySelectorAll('.stage img')].filter((film) => film.naturalWidth > 0).length === 2"
    )
    seeds = (
        "return [...document.querySelectorAll('.readings > div:last-child .figure')].map((seed) => seed.textContent)"
    )
    assert page.run(seeds) == ["3", "3"]
    assert [link.text for link in page.driver.find_elements(By.CSS_SELECTOR, ".side-name")] == ["ready", "unwanted"]
    page.photograph("side-by-side")


def test_a_policy_is_compared_with_a_random_one(page: Page) -> None:
    page.open("models/ready")
    page.click("button", "Evaluate")
    assert "(" in page.read(".comparison .number")
    page.find(".note", "random")


def test_a_job_is_started_with_the_keyboard_alone_and_stopped_after_a_question(
    page: Page, registry: JobRegistry
) -> None:
    page.open("new")
    page.press(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the content"
    page.press(Keys.ENTER)
    while (
        page.run("return document.activeElement.closest('.field')?.querySelector('code').textContent") != "model_name"
    ):
        page.press(Keys.TAB)
    page.press("by-keyboard", Keys.ENTER)
    page.find("h1", "by-keyboard")
    job = registry.get("latest")
    assert job.config.model_name == "by-keyboard"
    assert job.config.total_timesteps == 10_000


def test_a_running_job_is_stopped_after_a_question_and_resumed(page: Page, registry: JobRegistry) -> None:
    page.open("new")
    fill(page, "total_timesteps", "10000000")
    fill(page, "model_name", "endless")
    page.click("button", "Start training")
    page.click(".job button[aria-label='Stop endless']")
    page.find(".dialog", "Stop endless?")
    page.press(Keys.ESCAPE)
    wait_until(lambda: not page.shows(".dialog"))
    job = registry.get("latest")
    assert job.config.model_name == "endless"
    assert not job.is_stopping
    page.click(".job button[aria-label='Stop endless']")
    page.click(".dialog button", "Stop the job")
    page.find(".job .chip", "stopped")
    assert job.finished.wait(PATIENCE_SECONDS)
    page.click(".job button[aria-label='Resume endless']")
    page.find(".job .chip", "running")
    page.find(".events", "Started")
    job.stop()
    assert job.finished.wait(PATIENCE_SECONDS)


def test_a_refused_job_starts_once_its_fault_is_mended(page: Page, registry: JobRegistry) -> None:
    page.open("new")
    fill(page, "total_timesteps", "64")
    fill(page, "model_name", "ready")
    fill(page, "replace", "").click()  # otherwise it would be asked about
    page.click(".q-item", "no")
    page.find("pre", '"replace": false')
    page.click("button", "Start training")
    page.find(".field", "already exists")
    fill(page, "model_name", "mended")
    page.click("button", "Start training")
    page.find("h1", "mended")
    assert registry.get("latest").finished.wait(PATIENCE_SECONDS)


PROBLEMS = (
    "[...document.querySelectorAll('.q-field__messages, .note.bad')].map((text) => text.textContent).filter(Boolean)"
)


def list_problems(page: Page) -> list[str]:
    """List what the form says is wrong."""
    problems: list[str] = page.run(f"return {PROBLEMS}")
    return problems


def is_start_off(page: Page) -> bool:
    """Say whether the form's button is disabled."""
    return bool(page.run("return document.querySelector('.form-page button[type=submit]')?.disabled ?? true"))


MISTAKES = [
    ("env_name", "Pendulm", "did you mean 'Pendulum-v1'?"),
    ("preset", "Acrobt-v1", "did you mean 'Acrobot-v1'"),
    ("model_name", "my model", "letters from a to z, digits, '.', '_' and '-'"),
    ("total_timesteps", "1e", "“1e” cannot be read: this takes a whole number"),
    ("total_timesteps", "0", "must be at least 1, not 0"),
    ("learning_rate", "0,001", "“0,001” cannot be read"),
    ("net_arch", "64 64", "whole numbers separated by commas"),
    ("n_steps", "33", "n_steps=33 is not allowed: a rollout holds whole groups"),
]


def test_what_cannot_be_trained_is_said_once_and_disables_the_start(page: Page, registry: JobRegistry) -> None:
    n_jobs = len(registry.list_jobs())
    said_once = (
        f"const problems = {PROBLEMS}; return problems.length === 1 && problems[0].includes(arguments[0])"
        "&& document.querySelector('.aside').innerText.includes('Fix the marked field first')"
    )
    page.open("new")
    for name, text, problem in MISTAKES:
        field = fill(page, name, text)
        page.press(Keys.TAB)
        # Until then the server may still be answering for the first letters.
        page.wait(said_once, problem)
        assert is_start_off(page)
        assert field.get_attribute("value") == text
        assert "[A-Z" not in "".join(list_problems(page))
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.BACKSPACE)
        page.find(".aside", "Enter starts it too")
        assert list_problems(page) == []
    assert len(registry.list_jobs()) == n_jobs


def test_every_wrong_name_is_marked_with_the_closest_ones_whatever_else_is_wrong(page: Page) -> None:
    page.open("new")
    fill(page, "total_timesteps", "-1")
    fill(page, "reward_function_type", "simple_cartpol")
    fill(page, "env_name", "CartPol")
    for problem in (
        "env_name 'CartPol' is not a registered Gymnasium environment; did you mean 'CartPole-v1'",
        "reward_function_type 'simple_cartpol' is unknown; did you mean 'simple_cartpole' or",
        "must be at least 1, not -1",
    ):
        page.wait(f"return {PROBLEMS}.some((each) => each.includes(arguments[0]))", problem)
    assert len(list_problems(page)) == 3
    page.find(".aside", "Fix the marked fields first: Environment, Reward function, Simulator steps.")
    assert is_start_off(page)
    page.find(".environment", "No environment has this name.")
    fill(page, "env_name", "e-v1")  # CartPole-v1
    page.find(".environment", "500 steps at most")


def test_a_name_is_not_wrong_while_the_list_offers_to_complete_it(page: Page) -> None:
    page.open("new")
    field = fill(page, "env_name", "CartPo")
    page.wait(f"return {PROBLEMS}.some((each) => each.includes('not a registered'))")
    page.find("#suggestions li", "CartPole-v1")
    assert not page.run("return document.querySelector('.q-field__messages').checkVisibility()")
    assert "Fix the marked" not in page.read(".aside")
    field.send_keys(Keys.ESCAPE)
    page.find(".q-field__messages", "not a registered")
    page.find(".aside", "Fix the marked field first: Environment.")


def test_an_environment_that_cannot_be_created_is_said_once(
    page: Page, register_env: RegisterEnv, registry: JobRegistry
) -> None:
    def fail() -> Any:
        raise ImportError("Physics is missing")

    register_env(fail, "Missing-v0")
    page.open("new")
    fill(page, "env_name", "Missing-v0")
    page.find(".environment", "cannot be created")
    page.wait(f"return {PROBLEMS}.some((problem) => problem.includes('Physics is missing'))")
    assert is_start_off(page)
    (said,) = list_problems(page)
    assert said.count("Physics is missing") == 1
    assert "Physics is missing" not in page.read(".aside")


def test_the_form_says_what_it_waits_for_until_the_job_is_planned(page: Page, register_env: RegisterEnv) -> None:
    may_be_built = threading.Event()

    def build() -> gym.Env[Any, Any]:
        assert may_be_built.wait(PATIENCE_SECONDS)
        return gym.make("CartPole-v1").unwrapped

    register_env(build, "Slow-v0")
    page.open("new")
    try:
        fill(page, "env_name", "Slow-v0")
        fill(page, "total_timesteps", "64")
        page.find("pre", '"env_name": "Slow-v0", "total_timesteps": 64')
        page.click("button", "Start training")
        page.find(".aside [role=status]", "Checking the settings: a worker builds the environment")
        assert "Enter starts it too" not in page.read(".aside")
        fill(page, "seed", "1")  # the job that is on its way stays as it is, and alone
        page.find("pre", '"seed": 1')
        assert is_start_off(page)
    finally:
        may_be_built.set()
    page.find(".job")


@pytest.mark.parametrize("key", [Keys.TAB, Keys.ENTER], ids=["tab", "enter"])
def test_the_environment_that_is_typed_is_trained(page: Page, registry: JobRegistry, key: str) -> None:
    page.open("new")
    fill(page, "total_timesteps", "1")
    field = fill(page, "env_name", "Pendulum-v1")
    # Until then the server may be at the first letters, which are no environment, and a start is off.
    page.find("pre", '"env_name": "Pendulum-v1"')
    page.press(key)
    if key == Keys.TAB:
        assert field.get_attribute("value") == "Pendulum-v1"
        page.click("button", "Start training")
    page.find(".job")
    assert registry.get("latest").config.env_name == "Pendulum-v1"


def test_a_suggestion_is_taken_with_the_arrow_keys(page: Page) -> None:
    page.open("new")
    field = fill(page, "env_name", "lake")
    page.find("#suggestions li")
    page.press(Keys.ARROW_DOWN)
    assert page.read("#suggestions [aria-selected=true]") == "FrozenLake-v1"
    page.press(Keys.ENTER)
    assert field.get_attribute("value") == "FrozenLake-v1"
    page.find("pre", '"env_name": "FrozenLake-v1"')
    page.find(".topbar")  # Enter has not started it
    assert not page.shows("#suggestions")


def test_a_server_that_stops_answering_is_noticed_until_it_answers_again(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_back = threading.Event()

    async def wait(_: str) -> None:
        while not is_back.is_set():
            await anyio.sleep(0.01)

    page.open("new")
    page.run("delete window.socket.timeout")  # as long as everywhere but in tests
    page.run(
        "globalThis.said = []; new MutationObserver((changes) => { for (const { addedNodes: [node] } of changes)"
        " if (node?.matches?.('.slow-note, .offline-banner'))"
        " said.push([node.className, document.querySelector('.topbar').inert]); })"
        ".observe(document.body, { childList: true });"
    )
    handlers = core.sio.handlers["/"]
    monkeypatch.setitem(handlers, "grpo_ask", wait)
    page.find(".offline-banner", "does not answer")
    assert is_start_off(page)
    assert page.run("return said") == [["slow-note", False], ["offline-banner", True]]
    assert page.run("return document.querySelector('.topbar').inert")
    is_back.set()
    # In one look: a busy server may be late again with the next answer.
    goes_on = (
        "return !document.querySelector('.form-page button[type=submit]').disabled"
        "&& !document.querySelector('.offline-banner, .slow-note') && !document.querySelector('.topbar').inert"
    )
    page.wait(goes_on)
    # So is one that closes the connection, at once.
    monkeypatch.undo()
    page.run("window.socket.disconnect()")
    assert is_start_off(page)
    page.run("window.socket.connect()")
    page.wait(goes_on)


def test_copying_says_that_it_was_done_or_leaves_the_text_selected(page: Page) -> None:
    page.open("new")
    command = page.read("pre", "{}")
    page.run(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => window.copied = text}})"
    )
    page.click("button[aria-label='Copy the command']")
    page.find(".toast.good", "Copied.")
    assert page.run("return window.copied") == command
    page.run("navigator.clipboard.writeText = async () => { throw new Error('forbidden'); }")
    page.click("button[aria-label='Copy the command']")
    page.find(".toast.bad", "copy it by hand")
    assert page.run("return getSelection().toString()") == command


def test_the_way_to_the_content_takes_no_room_until_it_has_the_focus(page: Page) -> None:
    page.open("")
    measure = "const box = document.querySelector('.skip').getBoundingClientRect(); return [box.width, box.height]"
    assert page.run(measure) == [1, 1]
    page.press(Keys.TAB)
    assert min(page.run(measure)) > 20


def test_an_unknown_page_leads_home(page: Page) -> None:
    page.open("nowhere/at/all")
    page.find("h1", "There is no such page")
    page.driver.get_log("browser")  # type: ignore[no-untyped-call]  # of the status 404
    page.click(".page a", "Start page")
    page.find("h1", "Training")


def test_who_chose_a_setting_is_said_in_the_form_and_at_the_job(page: Page, registry: JobRegistry) -> None:
    page.open("new")
    fill(page, "gamma", "0.9")
    fill(page, "env_name", "Pendulum-v1")
    fill(page, "total_timesteps", "1")
    placeholder = "return [...document.querySelectorAll('.field')].find((box) => box.querySelector('code').textContent "
    placeholder += "=== arguments[0]).querySelector('input').placeholder"
    wait_until(lambda: page.run(placeholder, "n_steps") == "1,024 (from the preset)")
    assert page.run(placeholder, "batch_size") == "64 (by default)"
    read_marked = "return [...document.querySelectorAll('.field:has(.preset) code')].map((name) => name.textContent)"
    # The preset of the environment may be shown before what is typed last is read.
    wait_until(lambda: "total_timesteps" not in page.run(read_marked))
    marked = set(page.run(read_marked))
    assert {"n_steps", "horizon"} <= marked
    assert not {"gamma", "batch_size", "total_timesteps"} & marked
    page.press(Keys.ENTER)
    page.find(".record-table", "gamma")
    read = "return [...document.querySelectorAll(`[aria-label=Configuration] ${arguments[0]} tr`)].map((row) => "
    read += "[...row.children].map((cell) => cell.textContent))"
    own = page.run(read, "> .record-table")
    assert [row[0] for row in own] == ["env_name", "total_timesteps", "gamma"]
    assert own[2] == ["gamma", "0.9", "yours"]
    settings = page.run(read, "details")
    assert ["gamma", "0.9", "yours"] in settings
    assert ["n_steps", "1,024", "preset"] in settings
    assert ["batch_size", "64", "default"] in settings


def test_what_was_deleted_elsewhere_is_no_longer_offered(page: Page, app: FastAPI, registry: JobRegistry) -> None:
    page.open("new")
    fill(page, "total_timesteps", "1")
    fill(page, "model_name", "fleeting")
    page.click("button", "Start training")
    page.find(".job a[aria-label='Play fleeting']")
    page.wait(FILM)
    store = app.state.service.store
    content = (app.state.service.settings.models_dir / "fleeting.zip").read_bytes()
    registry.delete_model("fleeting")
    page.find(".job", "The model is gone: it was deleted.")
    page.wait("return !document.querySelector(`.job a[aria-label='Play fleeting']`).checkVisibility()")

    store.publish("fleeting", content)
    page.click(".job a[aria-label='Play fleeting']")
    page.wait(FILM)
    registry.delete_model("fleeting")
    page.find(".note.bad", "This model was deleted.")
    shown = page.run(
        "return [...document.querySelectorAll('.page .button')].filter((each) => each.checkVisibility())"
        ".map((each) => each.querySelector('span')?.textContent)"
    )
    assert "All models" in shown
    assert not {"Another episode", "Evaluate", "Download"} & set(shown)
    # So it is with an image that comes too late.
    page.run("document.querySelector('.stage img').dispatchEvent(new Event('error'))")
    page.find(".stage .over", "The film cannot be shown")
    page.driver.get_log("browser")  # type: ignore[no-untyped-call]  # a film may have been asked for as its model went


def test_a_model_is_deleted_after_a_question(page: Page, app: FastAPI) -> None:
    page.open("models")
    page.click("[aria-label='Delete unwanted']")
    page.find(".dialog", "Delete unwanted?")
    page.press(Keys.ESCAPE)
    wait_until(lambda: not page.shows(".dialog"))
    assert app.state.service.store.exists("unwanted")
    page.click("[aria-label='Delete unwanted']")
    page.click(".dialog button", "Delete the model")
    wait_until(lambda: not app.state.service.store.exists("unwanted"))
    page.find(".toast.good", "unwanted is deleted.")
    page.find(".model", "ready")
    wait_until(lambda: not page.shows("[aria-label='Model unwanted']"))


def test_models_are_uploaded_and_found_by_name(page: Page, app: FastAPI, tmp_path: Path) -> None:
    file = tmp_path / "brought.zip"
    file.write_bytes(make_model("CartPole-v1", seed=2).to_bytes(env_name="CartPole-v1"))
    page.open("models")
    page.driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))
    page.find(".model", "brought")
    assert page.find(".toast.good", "brought is uploaded.").find_element(By.TAG_NAME, "a").text == "Play it"
    (tmp_path / "bad.zip").write_bytes(b"nothing")
    page.driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "bad.zip"))
    page.find(".toast.bad[role=alert]", "The file bad is not uploaded")
    page.click(".toast.bad button")
    wait_until(lambda: not page.shows(".toast.bad"))
    page.driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))
    page.click(".dialog button", "Replace the model")
    page.find(".toast.good", "brought is uploaded.")
    # Nor are a proxy's words, and a connection that is lost, met with silence.
    for answer, said in (("new Response('<p>', {status: 502})", "HTTP 502"), ("Promise.reject()", "connection broke")):
        page.run(f"globalThis.fetch = async () => {answer}")
        page.driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))
        page.find(".toast.bad", said)
    page.driver.get_log("browser")  # type: ignore[no-untyped-call]  # of the statuses 400 and 409
    page.find("input[type=search]").send_keys("brou")
    page.find("h1 + p", "1 of")
    assert app.state.service.store.exists("brought")


def test_what_a_model_can_be_used_with_is_copied(page: Page) -> None:
    page.open("models/ready")
    page.click("[aria-label='Use it'] summary", "curl")
    assert '"model_name": "ready"' in page.read("[aria-label='Use it'] pre")
    page.click("[aria-label='Copy: curl']")
    page.find(".toast", "op")  # "Copied." or, where the browser does not let it, "copy it by hand"
    exported = page.find("[aria-label='Use it'] a", "TorchScript").get_attribute("href") or ""
    assert exported.endswith("/models/ready/export?format=torchscript")


def test_versions_are_promoted_and_rolled_back(page: Page, app: FastAPI) -> None:
    store = app.state.service.store
    for seed in (3, 4):
        store.publish("versioned", make_model("CartPole-v1", seed=seed).to_bytes(env_name="CartPole-v1"))
    first = store.get("versioned@1").actor.policy_layers[0][0]
    page.open("models/versioned")
    page.click("[aria-label='Promote Version 1']")
    page.find(".toast.good", "versioned@prod is version 1 now.")
    page.find("[aria-label='Version 1'] .chip", "prod")
    page.click("[aria-label='Delete the alias prod']")
    page.find(".toast.good", "prod is deleted.")
    wait_until(
        lambda: not page.shows("[aria-label='Delete the alias prod']")
    )  # the list is made anew, with its buttons
    page.click("[aria-label='Roll back to Version 1']")
    page.click(".dialog button", "Roll back")
    page.find("[aria-label='Version 3'] .chip", "newest")
    assert (store.get("versioned").actor.policy_layers[0][0] == first).all()
    page.find(".note", "This model was replaced. Reload the page")
    page.open("models/versioned@2")
    page.find("h1", "versioned@2")
    page.open("models/versioned")
    page.photograph("versions")
    page.wait(FILM)
    store.delete("versioned")


@pytest.mark.parametrize("path", PAGES)
def test_a_phone_shows_every_page_without_scrolling_sideways(page: Page, path: str) -> None:
    page.emulate(390, 844)
    page.open(path)
    # In one script with the opening: a menu has to stay on the page even before its place is computed.
    outside = (
        "document.querySelectorAll('details').forEach((group) => group.setAttribute('open', ''));"
        "return [...document.querySelectorAll('.page *')].filter((e) => e.getBoundingClientRect().right > 391 "
        "&& getComputedStyle(e).visibility !== 'hidden').map((e) => e.className)"
    )
    assert page.run(outside) == []
    assert page.run("return document.documentElement.scrollWidth") == 390
    page.photograph(f"phone-{path.replace('/', '-') or 'training'}")


@pytest.mark.parametrize("path", PAGES)
def test_everything_that_can_be_used_has_a_name_for_screen_readers(page: Page, path: str) -> None:
    page.open(path)
    page.run("document.querySelectorAll('details').forEach((group) => group.setAttribute('open', ''))")
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in NAMED_ROLES]
    assert len(shown) > 5
    nameless = [node["backendDOMNodeId"] for node in shown if not node["name"]["value"].strip()]
    described = [page.driver.execute_cdp_cmd("DOM.getOuterHTML", {"backendNodeId": node}) for node in nameless]
    assert described == []


def get_brightness(page: Page) -> int:
    colour = page.run("return getComputedStyle(document.body).backgroundColor")
    return max(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))


def test_dark_mode_follows_the_system_until_it_is_chosen(page: Page) -> None:
    page.emulate(is_dark=True)
    page.open("models/ready")
    assert get_brightness(page) < 40
    page.click("[aria-label='Switch between light and dark']")
    wait_until(lambda: get_brightness(page) > 200)
    page.open("server")
    assert get_brightness(page) > 200
    page.run("localStorage.removeItem('grpo-theme')")
    page.open("server")
    assert get_brightness(page) < 40
    blocked = "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('blocked'); }})"
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": blocked})
    page.open("server")
    page.click("[aria-label='Switch between light and dark']")
    wait_until(lambda: get_brightness(page) > 200)
    page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_logging_out_ends_the_session(page: Page) -> None:
    page.open("server")
    page.click("[aria-label='Log out']")
    page.find("h1", "Log in to GRPO")
    page.driver.get(page.driver.current_url.replace("/login", "/dashboard"))
    page.find("h1", "Log in to GRPO")
