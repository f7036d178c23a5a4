"""The pages of sweeps, in a browser that can reach nothing but the service."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from api import create_app
from service.schemas.sweeps import SweepDescription, SweepRequest
from service.settings import Settings
from tests.browser import ARTEFACTS, drive, list_addresses, needs_driver
from tests.service.dashboard.page import Page, be_patient
from tests.support import PATIENCE_SECONDS, serve, wait_until

BASE = {"total_timesteps": 64, "n_eval_episodes": 2}

pytestmark = needs_driver


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """A service with two slots."""
    settings: dict[str, Any] = {"max_running_jobs": 2, "executor": "thread", "task_seconds": PATIENCE_SECONDS}
    return create_app(Settings(models_dir=tmp_path_factory.mktemp("models"), **settings))


@pytest.fixture(scope="module")
def origin(app: FastAPI) -> Iterator[str]:
    """Where the service is."""
    with serve(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def driver(origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser."""
    with drive(tmp_path_factory.mktemp("profile"), 1440, 1100) as driver:
        be_patient(driver)
        ARTEFACTS.mkdir(exist_ok=True)
        yield driver


@pytest.fixture
def page(driver: webdriver.Chrome, origin: str) -> Page:
    """A page of the browser."""
    page = Page(driver, origin)
    page.emulate()
    return page


def start(app: FastAPI, **fields: Any) -> str:
    """Start a sweep, and return its id."""
    planned = app.state.service.sweeps.create(SweepRequest.model_validate(fields))
    sweep_id: str = planned.record.sweep_id
    return sweep_id


def describe(app: FastAPI, sweep_id: str) -> SweepDescription:
    sweep: SweepDescription = app.state.service.sweeps.describe(sweep_id)
    return sweep


def test_without_a_sweep_there_is_a_command_for_this_server(page: Page, origin: str) -> None:
    page.open("sweeps")
    port = origin.rpartition(":")[2]
    assert f" --url http://127.0.0.1:{port} " in page.read(".empty code")


def test_the_settings_are_drawn_and_stand_in_a_table_by_what_they_earned(page: Page, app: FastAPI, origin: str) -> None:
    space = {"learning_rate": [0.001, 0.003], "lr_schedule": ["linear", "constant"]}
    sweep_id = start(app, name="rates", base=BASE, space=space, seeds=[0, 1])
    page.open("sweeps")
    page.click("a", "rates")
    wait_until(lambda: not describe(app, sweep_id).status.is_active)
    sweep = describe(app, sweep_id)
    assert sweep.best is not None
    page.find("p", "8 completed")
    page.find(".chip", "completed")
    page.find(".best-setting", sweep.best.text)
    # The page may have shown the last figures before it knew of the end, and ranks the settings again then.
    page.wait(
        "const heads = [...document.querySelectorAll('.settings-table tbody th')].map((head) => head.innerText.trim());"
        "return document.querySelectorAll('.coordinates polyline').length === 4 "
        "&& JSON.stringify(heads.map((head) => head.split(/\\s/)[0])) === JSON.stringify(arguments[0])",
        [str(setting.number) for setting in sweep.settings],
    )
    page.photograph("sweep")
    page.emulate(390, 844)
    outside = (
        "return [...document.querySelectorAll('.page *')].filter((e) => e.getBoundingClientRect().right > 391)"
        ".map((e) => e.className)"
    )
    assert page.run(outside) == []
    page.photograph("phone-sweep")
    app.state.service.registry.delete_model(sweep.best.model_name)
    page.find(".settings-table", f"{sweep.best.model_name}, deleted")
    assert list_addresses(page.driver) == {origin.removeprefix("http://")}
    errors = [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]
    assert errors == []


def test_a_setting_alone_is_the_best_of_nothing_and_its_figure_stands_twice(page: Page, app: FastAPI) -> None:
    sweep_id = start(app, name="alone", base=BASE, space={"gamma": [0.9]}, seeds=[0])
    wait_until(lambda: not describe(app, sweep_id).status.is_active)
    best = describe(app, sweep_id).best
    assert best is not None
    page.open(f"sweeps/{sweep_id}")
    page.find(".best-setting .figure", f"{best.mean_reward:.4g}"[:2])
    page.find(".settings-table", "0.9")
    assert page.run("return document.querySelectorAll('.settings-table .best, .best-setting .verdict').length") == 0
    page.photograph("sweep-alone")


def test_all_jobs_are_stopped_after_a_question_and_go_on(page: Page, app: FastAPI) -> None:
    sweep_id = start(app, base={**BASE, "total_timesteps": 10_000_000}, space={"gamma": [0.9, 0.99, 1.0]})
    page.open(f"sweeps/{sweep_id}")
    page.click("button", "Stop all jobs")
    page.click(".dialog button", "Stop all")
    wait_until(lambda: describe(app, sweep_id).status == "stopped")
    page.click("button", "Resume")
    wait_until(lambda: describe(app, sweep_id).status == "running")
    app.state.service.sweeps.stop(sweep_id)


def test_several_values_are_tried_from_the_form(page: Page, app: FastAPI) -> None:
    page.open("new")
    page.click(".sweep-panel summary", "Try several values")
    text = page.find(".sweep-panel textarea")
    text.send_keys("learning_rat = 0.001, 0.003")
    page.click("button", "Start a sweep")
    page.find(".sweep-panel", "did you mean learning_rate?")
    text.send_keys(Keys.CONTROL, "a")
    text.send_keys("learning_rate = 0.001, 0.003\nnet_arch = [8], [8, 8]")
    page.photograph("sweep-form")
    page.click("button", "Start a sweep")
    wait_until(lambda: "/dashboard/sweeps/" in page.driver.current_url)
    sweep = describe(app, page.driver.current_url.rpartition("/")[2])
    assert sweep.request["space"] == {"learning_rate": [0.001, 0.003], "net_arch": [[8], [8, 8]]}
    assert sweep.request["seeds"] == [0, 1, 2]
    app.state.service.sweeps.stop(sweep.sweep_id)


def test_an_unknown_sweep_leads_to_the_list(page: Page) -> None:
    page.open("sweeps/unknown")
    page.find("h1", "There is no such sweep")
    assert page.run("return performance.getEntriesByType('navigation')[0].responseStatus") == 404
    page.click(".page a", "All sweeps")
    wait_until(lambda: page.driver.current_url.endswith("/dashboard/sweeps"))
