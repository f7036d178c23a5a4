"""The headless browser that pages are tested in; it reaches nothing but this machine."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ARTEFACTS = Path(__file__).parent / "artefacts"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
needs_driver = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="there is no Chromium with its driver here")


def list_flags(profile: Path, width: int, height: int) -> list[str]:
    """List the flags to start a browser with.

    :param profile: Folder for what it keeps; a fresh one.
    :param width: Of the window, in pixels.
    :param height: Likewise.
    """
    return [
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
    ]


@contextmanager
def drive(profile: Path, width: int, height: int) -> Iterator[webdriver.Chrome]:
    """Start a browser to click in, which notes its requests and what its console says; see ``list_flags``."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in list_flags(profile, width, height):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options, Service(DRIVER)) as driver:
        yield driver
