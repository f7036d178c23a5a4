"""The headless browser that pages are tested in; it reaches nothing but this machine."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import SessionNotCreatedException
from selenium.webdriver.chrome.service import Service

from tests.support import PATIENCE_SECONDS

ARTEFACTS = Path(__file__).parent / "artefacts"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SCHEMES = {"http", "https", "ws", "wss"}  # the browser's own pages have another
DRIVER = shutil.which("chromedriver")

needs_driver = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="there is no Chromium with its driver here")


@contextmanager
def drive(profile: Path, width: int, height: int) -> Iterator[webdriver.Chrome]:
    """Start a browser to click in, which notes its requests and what its console says.

    :param profile: Folder for what it keeps; a fresh one.
    :param width: Of the window, in pixels.
    :param height: Likewise.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with _start(options) as driver:
        # Two minutes by default, less than pages and scripts may take.
        driver.command_executor.client_config.timeout = 2 * PATIENCE_SECONDS  # type: ignore[union-attr]
        yield driver


def _start(options: webdriver.ChromeOptions) -> webdriver.Chrome:
    """Start a browser, and again if a busy machine does not do so in the minute that its driver waits."""
    for _ in range(4):
        with suppress(SessionNotCreatedException):
            return webdriver.Chrome(options, Service(DRIVER))
    return webdriver.Chrome(options, Service(DRIVER))


def list_urls(driver: webdriver.Chrome) -> list[str]:
    """List the URLs that pages have asked for since the last time, without those that a page's own policy blocked."""
    asked: dict[str, str] = {}
    for entry in driver.get_log("performance"):  # type: ignore[no-untyped-call]
        message = json.loads(entry["message"])["message"]
        params = message["params"]
        match message["method"]:
            case "Network.requestWillBeSent":
                asked[params["requestId"]] = params["request"]["url"]
            case "Network.webSocketCreated":
                asked[params["requestId"]] = params["url"]
            case "Network.loadingFailed" if params.get("blockedReason") == "csp":
                asked.pop(params["requestId"], None)
    return [url for url in asked.values() if urlsplit(url).scheme in _SCHEMES]


def list_addresses(driver: webdriver.Chrome) -> set[str]:
    """List the hosts and ports that pages have asked for anything since the last time."""
    return {urlsplit(url).netloc for url in list_urls(driver)}
