"""A page of the dashboard, as tests use it."""

from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.browser import ARTEFACTS
from tests.support import wait_until


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
