"""The dashboard in a browser that can reach nothing but the service, which asks for a key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from api import create_app
from service.jobs.registry import JobRegistry
from service.settings import Settings
from tests.browser import ARTEFACTS, drive, list_addresses, needs_driver
from tests.support import PATIENCE_SECONDS, make_model, serve, wait_until

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
PAGES = ["", "new", "models", "models/ready", "server"]

pytestmark = needs_driver


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """A service with a model, a key, and room for two jobs."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "ready.zip").write_bytes(make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"))
    (folder / "unwanted.zip").write_bytes(make_model("CartPole-v1", seed=1).to_bytes(env_name="CartPole-v1"))
    return create_app(Settings(models_dir=folder, max_running_jobs=2, executor="thread", api_key=KEY))


@pytest.fixture(scope="module")
def origin(app: FastAPI) -> Iterator[str]:
    """Where the service is."""
    with serve(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def driver(origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser that has logged in."""
    with drive(tmp_path_factory.mktemp("profile"), 1440, 1100) as driver:
        driver.get(f"{origin}/dashboard")
        assert urlsplit(driver.current_url).path == "/login"
        ARTEFACTS.mkdir(exist_ok=True)
        driver.save_screenshot(ARTEFACTS / "login.png")
        driver.switch_to.active_element.send_keys(KEY, Keys.ENTER)
        wait_until(lambda: urlsplit(driver.current_url).path == "/dashboard/")
        yield driver


class Page:
    """What the tests do on a page."""

    def __init__(self, driver: webdriver.Chrome, origin: str) -> None:
        self.driver = driver
        self._origin = origin

    def open(self, path: str) -> None:
        """Go to a page below the dashboard, and wait until it talks with the server."""
        self.driver.get(f"{self._origin}/dashboard/{path}")
        wait_until(lambda: bool(self.run("return window.did_handshake === true")))

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str, text: str = "") -> WebElement:
        """Wait for a visible element that holds a text."""
        found: list[WebElement] = []

        def look() -> bool:
            try:
                elements = self.driver.find_elements(By.CSS_SELECTOR, selector)
                found[:] = [element for element in elements if element.is_displayed() and text in element.text]
            except StaleElementReferenceException:
                return False
            return bool(found)

        wait_until(look)
        return found[0]

    def click(self, selector: str, text: str = "") -> None:
        """Click an element as soon as it is there."""
        element = self.find(selector, text)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def press(self, *keys: str) -> None:
        """Press keys, whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def photograph(self, name: str) -> None:
        """Keep a screenshot."""
        self.driver.save_screenshot(ARTEFACTS / f"dashboard-{name}.png")

    def emulate(self, width: int = 1440, height: int = 1100, is_dark: bool = False) -> None:
        """Be a screen of another size, or of a system in dark mode."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


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


def fill(page: Page, name: str, value: str) -> None:
    """Type into a field of the form, by its name in requests."""
    label = page.run(
        "return [...document.querySelectorAll('.field')].find((box) => "
        "box.querySelector('code').textContent === arguments[0])?.querySelector('input')",
        name,
    )
    page.run("arguments[0].closest('details')?.setAttribute('open', '')", label)
    label.send_keys(value)


def test_a_policy_is_trained_by_clicking_and_then_watched(page: Page) -> None:
    page.open("")
    page.click(".topbar a", "New job")
    page.find("h1", "New job")
    fill(page, "total_timesteps", "4000")
    fill(page, "model_name", "clicked")
    fill(page, "seed", "1")
    page.find("pre", '"model_name": "clicked"')
    page.photograph("form")
    page.click("button", "Start training")
    page.find(".job .chip", "completed")
    wait_until(lambda: len(page.run("return grpoCurves.read('reward')[0]?.points ?? []")) > 10)
    (curve,) = page.run("return grpoCurves.read('reward')")
    rewards = [reward for _, reward in curve["points"]]
    assert curve["name"] == "clicked"
    assert rewards[-1] > 2 * rewards[0]
    drawn = "return getElement(+document.querySelector('.nicegui-echart').id.slice(1)).chart.getOption().series[0].data"
    assert page.run(drawn) == curve["points"]
    page.photograph("curves")

    page.click(".job a", "Play")
    page.find("h1", "clicked")
    wait_until(lambda: bool(page.run("return document.querySelector('.stage img')?.naturalWidth > 0")))
    assert float(page.find(".readings .figure").text) >= 9
    first = page.run("return document.querySelector('.stage img').src")
    page.click("button", "Another episode")
    wait_until(lambda: page.run("return document.querySelector('.stage img').src") != first)
    page.photograph("model")


def test_sliders_show_at_once_what_the_policy_makes_of_an_observation(page: Page) -> None:
    page.open("models/ready")
    read = "return [...document.querySelectorAll(arguments[0])].map((text) => text.textContent)"
    wait_until(lambda: len(page.run(read, ".probability .number")) == 2)
    shares = page.run(read, ".probability .number")
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=0.2)
    value = page.run(read, ".bars + .row-flex .number")
    page.run("document.querySelectorAll('.q-slider [tabindex]')[2].focus()")
    page.press(*[Keys.ARROW_RIGHT] * 20)
    wait_until(lambda: page.run(read, ".slider .number")[2] == "0.0838", 10)  # 20 steps of 0.4189 / 100
    wait_until(lambda: page.run(read, ".bars + .row-flex .number") != value)


def test_a_policy_is_compared_with_a_random_one(page: Page) -> None:
    page.open("models/ready")
    page.click("button", "Evaluate")
    assert "(" in page.find(".comparison .number").text
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
    page.find(".job", "by-keyboard")
    (job,) = [job for job in registry.list_jobs() if job.config.model_name == "by-keyboard"]
    assert job.config.total_timesteps == 10_000


def test_a_running_job_is_stopped_after_a_question(page: Page, registry: JobRegistry) -> None:
    page.open("new")
    fill(page, "total_timesteps", "10000000")
    fill(page, "model_name", "endless")
    page.click("button", "Start training")
    page.click(".job button[aria-label='Stop endless']")
    page.find(".dialog", "Stop endless?")
    page.press(Keys.ESCAPE)
    wait_until(lambda: not page.driver.find_elements(By.CSS_SELECTOR, ".dialog"))
    (job,) = [job for job in registry.list_jobs() if job.config.model_name == "endless"]
    assert not job.is_stopping
    page.click(".job button[aria-label='Stop endless']")
    page.click(".dialog button", "Stop the job")
    page.find(".job .chip", "stopped")
    assert job.finished.wait(PATIENCE_SECONDS)


def test_what_the_server_refuses_is_said_at_the_field(page: Page, registry: JobRegistry) -> None:
    n_jobs = len(registry.list_jobs())
    page.open("new")
    fill(page, "n_steps", "33")
    page.click("button", "Start training")
    page.find(".field .q-field__messages", "n_steps=33 does not hold whole groups")
    fill(page, "total_timesteps", "0")
    page.click("button", "Start training")
    page.find(".field .q-field__messages", "greater than or equal to 1")
    assert len(registry.list_jobs()) == n_jobs


def test_a_model_is_deleted_after_a_question(page: Page, app: FastAPI) -> None:
    page.open("models")
    page.click("[aria-label='Delete unwanted']")
    page.find(".dialog", "Delete unwanted?")
    page.press(Keys.ESCAPE)
    wait_until(lambda: not page.driver.find_elements(By.CSS_SELECTOR, ".dialog"))
    assert app.state.service.store.exists("unwanted")
    page.click("[aria-label='Delete unwanted']")
    page.click(".dialog button", "Delete the model")
    wait_until(lambda: not app.state.service.store.exists("unwanted"))
    page.find(".model", "ready")
    wait_until(lambda: not page.driver.find_elements(By.CSS_SELECTOR, "[aria-label='Model unwanted']"))


def test_models_are_uploaded_and_found_by_name(page: Page, app: FastAPI, tmp_path: Path) -> None:
    file = tmp_path / "brought.zip"
    file.write_bytes(make_model("CartPole-v1", seed=2).to_bytes(env_name="CartPole-v1"))
    page.open("models")
    page.driver.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(file))
    page.find(".model", "brought")
    page.find("input[type=search]").send_keys("brou")
    page.find("h1 + p", "1 of")
    assert app.state.service.store.exists("brought")


@pytest.mark.parametrize("path", PAGES)
def test_a_phone_shows_every_page_without_scrolling_sideways(page: Page, path: str) -> None:
    page.emulate(390, 844)
    page.open(path)
    page.run("document.querySelectorAll('details').forEach((group) => group.setAttribute('open', ''))")
    assert page.run("return document.documentElement.scrollWidth") == 390
    outside = (
        "return [...document.querySelectorAll('.page *')].filter((e) => e.getBoundingClientRect().right > 391 "
        "&& getComputedStyle(e).visibility !== 'hidden').map((e) => e.className)"
    )
    assert page.run(outside) == []
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


def test_logging_out_ends_the_session(page: Page) -> None:
    page.open("server")
    page.click("[aria-label='Log out']")
    page.find("h1", "Log in to GRPO")
    page.driver.get(page.driver.current_url.replace("/login", "/dashboard"))
    page.find("h1", "Log in to GRPO")
