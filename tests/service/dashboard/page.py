"""A page of the dashboard, as tests use it."""

from typing import Any

from nicegui import core
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    StaleElementReferenceException,
)
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from service.dashboard import nicegui_app
from tests.browser import ARTEFACTS
from tests.support import PATIENCE_SECONDS, wait_until

# What a page does by the clock, which a busy machine would let it do in the middle of a test: it takes a server that is
# slow for one that is gone, and takes messages away before they are read. The pointer rests on every message.
_PATIENT = f"""
let socket;
Object.defineProperty(window, "socket", {{
  get: () => socket,
  set(made) {{
    const limit = made.timeout;
    made.timeout = () => limit.call(made, {PATIENCE_SECONDS * 1000});
    socket = made;
  }},
}});
new MutationObserver((changes) => {{
  for (const {{ addedNodes }} of changes)
    for (const node of addedNodes) if (node.classList?.contains("toast")) node.dispatchEvent(new Event("mouseenter"));
}}).observe(document, {{ childList: true, subtree: true }});
"""
# A browser that says nothing for 0.4 times as long is cut off; a page that was left goes on for all of it.
_RECONNECT_SECONDS = 60.0
# Menus close when something scrolls, which they hear with the next frame.
_SCROLL_TO = "arguments[0].scrollIntoView({block: 'center'}); requestAnimationFrame(() => setTimeout(arguments[1]))"
# The page is drawing it again, or something lies above it still.
_NOT_YET = (
    ElementClickInterceptedException,
    ElementNotInteractableException,
    JavascriptException,
    StaleElementReferenceException,
)


def be_patient(driver: webdriver.Chrome) -> None:
    """Let pages, and the server of the first one, take nothing for lost because it is slow."""
    assert not nicegui_app.is_open(), "it reads its settings when the first visitor comes"
    core.app.config.reconnect_timeout = _RECONNECT_SECONDS
    driver.set_script_timeout(PATIENCE_SECONDS)
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _PATIENT})


class Page:
    """What the tests do on a page."""

    def __init__(self, driver: webdriver.Chrome, origin: str) -> None:
        self.driver = driver
        self._origin = origin

    def open(self, path: str) -> None:
        """Go to a page below the dashboard, and wait until it talks with the server and has its fonts."""
        self.driver.get(f"{self._origin}/dashboard/{path}")
        self.wait("return window.did_handshake === true && document.fonts.status === 'loaded'")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript again and again until it returns something that is not false; return that."""
        returned: list[Any] = []

        def look() -> bool:
            try:
                returned[:] = [self.run(script, *arguments)]
            except JavascriptException:  # what it looks at is not there yet
                return False
            return bool(returned[0])

        wait_until(look)
        return returned[0]

    def find(self, selector: str, text: str = "") -> WebElement:
        """Wait for a visible element that holds a text."""
        return self._look(selector, text)[0]

    def read(self, selector: str, text: str = "") -> str:
        """Wait for a visible element that holds a text; return all of its text."""
        return self._look(selector, text)[1]

    def _look(self, selector: str, text: str) -> tuple[WebElement, str]:
        found: list[tuple[WebElement, str]] = []

        def look() -> bool:
            try:
                shown = [each for each in self.driver.find_elements(By.CSS_SELECTOR, selector) if each.is_displayed()]
                found[:] = [(element, held) for element in shown if text in (held := element.text)]
            except StaleElementReferenceException:
                return False
            return bool(found)

        wait_until(look)
        return found[0]

    def shows(self, selector: str) -> bool:
        """Say whether there is such an element now, visible or not."""
        return bool(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def click(self, selector: str, text: str = "") -> None:
        """Click an element as soon as it is there and nothing lies above it."""

        def act() -> bool:
            element = self.find(selector, text)
            try:
                self.driver.execute_async_script(_SCROLL_TO, element)
                element.click()
            except _NOT_YET:
                return False
            return True

        wait_until(act)

    def press(self, *keys: str) -> None:
        """Press keys, whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def photograph(self, name: str) -> None:
        """Keep a screenshot."""
        self.driver.save_screenshot(ARTEFACTS / f"dashboard-{name}.png")

    def emulate(self, width: int = 1440, height: int = 1100, is_dark: bool = False) -> None:
        """Be a screen of another size, or of a system in dark mode.

        Nothing moves on it, so that a click meets what it aims at.
        """
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
