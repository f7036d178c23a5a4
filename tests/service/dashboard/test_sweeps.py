"""The pages of sweeps, in a browser that can reach nothing but the service."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from api import create_app
from service.schemas.sweeps import SweepDescription, SweepRequest
from service.settings import Settings
from tests.browser import ARTEFACTS, drive, list_addresses, needs_driver
from tests.support import serve, wait_until

BASE = {"total_timesteps": 64, "n_eval_episodes": 2}

pytestmark = needs_driver


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """A service with two slots."""
    return create_app(Settings(models_dir=tmp_path_factory.mktemp("models"), max_running_jobs=2, executor="thread"))


@pytest.fixture(scope="module")
def origin(app: FastAPI) -> Iterator[str]:
    """Where the service is."""
    with serve(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def driver(origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser."""
    with drive(tmp_path_factory.mktemp("profile"), 1440, 1100) as driver:
        ARTEFACTS.mkdir(exist_ok=True)
        yield driver


def start(app: FastAPI, **fields: Any) -> str:
    """Start a sweep, and return its id."""
    planned = app.state.service.sweeps.create(SweepRequest.model_validate(fields))
    sweep_id: str = planned.record.sweep_id
    return sweep_id


def describe(app: FastAPI, sweep_id: str) -> SweepDescription:
    sweep: SweepDescription = app.state.service.sweeps.describe(sweep_id)
    return sweep


def has(driver: webdriver.Chrome, text: str) -> bool:
    """Say whether the page shows a text."""
    return text in driver.find_element(By.TAG_NAME, "body").text


def click(driver: webdriver.Chrome, text: str) -> None:
    """Press the button with a text once there is one."""
    place = f"//button[.//span[normalize-space(.)='{text}']]"
    wait_until(lambda: any(button.is_displayed() for button in driver.find_elements(By.XPATH, place)))
    next(button for button in driver.find_elements(By.XPATH, place) if button.is_displayed()).click()


def test_the_settings_are_drawn_and_stand_in_a_table_by_what_they_earned(
    driver: webdriver.Chrome, app: FastAPI, origin: str
) -> None:
    space = {"learning_rate": [0.001, 0.003], "lr_schedule": ["linear", "constant"]}
    sweep_id = start(app, name="rates", base=BASE, space=space, seeds=[0, 1])
    driver.get(f"{origin}/dashboard/sweeps")
    wait_until(lambda: has(driver, "rates"))
    driver.find_element(By.LINK_TEXT, "rates").click()
    wait_until(lambda: not describe(app, sweep_id).status.is_active)
    wait_until(lambda: has(driver, "8 completed"))
    sweep = describe(app, sweep_id)
    wait_until(lambda: len(driver.find_elements(By.CSS_SELECTOR, ".coordinates polyline")) == 4)
    rows = [row.text for row in driver.find_elements(By.CSS_SELECTOR, ".settings-table tbody th")]
    assert [row.split()[0] for row in rows] == [str(setting.number) for setting in sweep.settings]
    assert sweep.best is not None
    assert has(driver, sweep.best.text)
    driver.save_screenshot(ARTEFACTS / "sweep.png")
    assert list_addresses(driver) == {origin.removeprefix("http://")}
    errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]
    assert errors == []


def test_all_jobs_are_stopped_after_a_question_and_go_on(driver: webdriver.Chrome, app: FastAPI, origin: str) -> None:
    sweep_id = start(app, base={**BASE, "total_timesteps": 10_000_000}, space={"gamma": [0.9, 0.99, 1.0]})
    driver.get(f"{origin}/dashboard/sweeps/{sweep_id}")
    click(driver, "Stop all jobs")
    click(driver, "Stop all")
    wait_until(lambda: describe(app, sweep_id).status == "stopped")
    click(driver, "Resume")
    wait_until(lambda: describe(app, sweep_id).status == "running")
    app.state.service.sweeps.stop(sweep_id)


def test_several_values_are_tried_from_the_form(driver: webdriver.Chrome, app: FastAPI, origin: str) -> None:
    driver.get(f"{origin}/dashboard/new")
    wait_until(lambda: has(driver, "Try several values"))
    summary = driver.find_element(By.CSS_SELECTOR, ".sweep-panel summary")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)
    summary.click()
    text = driver.find_element(By.CSS_SELECTOR, ".sweep-panel textarea")
    text.send_keys("learning_rat = 0.001, 0.003")
    click(driver, "Start a sweep")
    wait_until(lambda: has(driver, "did you mean learning_rate?"))
    text.send_keys(Keys.CONTROL, "a")
    text.send_keys("learning_rate = 0.001, 0.003\nnet_arch = [8], [8, 8]")
    driver.save_screenshot(ARTEFACTS / "sweep-form.png")
    click(driver, "Start a sweep")
    wait_until(lambda: "/dashboard/sweeps/" in driver.current_url)
    sweep = describe(app, driver.current_url.rpartition("/")[2])
    assert sweep.request["space"] == {"learning_rate": [0.001, 0.003], "net_arch": [[8], [8, 8]]}
    assert sweep.request["seeds"] == [0, 1, 2]
    app.state.service.sweeps.stop(sweep.sweep_id)


def test_an_unknown_sweep_leads_to_the_list(driver: webdriver.Chrome, origin: str) -> None:
    driver.get(f"{origin}/dashboard/sweeps/unknown")
    wait_until(lambda: has(driver, "There is no such sweep"))
    driver.find_element(By.LINK_TEXT, "All sweeps").click()
    wait_until(lambda: driver.current_url.endswith("/dashboard/sweeps"))
