"""Every page of the service works in a browser that can reach nothing but the service, and the guides name no host."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks.server import serve as serve_process
from tests.browser import ARTEFACTS, BROWSER, drive, list_flags, needs_browser, needs_driver
from tests.support import serve, wait_until

ROOT = Path(__file__).parents[3]
KEY = "a key of 22 characters"
OPERATIONS = ["/train", "/inference", "/training/{job_id}/status", "/models/{model_name}", "/health"]


@pytest.fixture
def port(app: FastAPI) -> Iterator[int]:
    """The port of the service on loopback."""
    with serve(app) as port:
        yield port


@pytest.fixture(scope="module")
def open_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a process of its own, for NiceGUI is there once per process."""
    with serve_process(tmp_path_factory.mktemp("models")) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def locked_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same with an API key."""
    with serve_process(tmp_path_factory.mktemp("models"), GRPO_API_KEY=KEY) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A headless browser to click in."""
    with drive(tmp_path, 1280, 2000) as driver:
        yield driver


def open_page(url: str, folder: Path, screenshot: Path) -> tuple[str, list[str]]:
    """Open a page in a fresh headless browser; return the DOM once it is quiet and the URLs it asked for."""
    net_log = folder / "net.json"
    finished = subprocess.run(
        [
            str(BROWSER),
            *list_flags(folder / "profile", 1280, 1600),
            f"--log-net-log={net_log}",
            "--virtual-time-budget=8000",
            f"--screenshot={screenshot}",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    origin = url.removesuffix(urlsplit(url).path)
    return finished.stdout, list_urls_asked_for_by(origin, net_log)


def list_urls_asked_for_by(origin: str, net_log: Path) -> list[str]:
    log = json.loads(net_log.read_text())
    url_request = log["constants"]["logSourceType"]["URL_REQUEST"]
    requests = [event.get("params", {}) for event in log["events"] if event["source"]["type"] == url_request]
    # What the browser itself wants to know of its maker has no origin.
    return sorted({request["url"] for request in requests if request.get("initiator") == origin})


@needs_browser
@pytest.mark.parametrize(
    ("page", "rendered"),
    [
        ("docs", r'class="opblock-summary-path"[^>]*data-path="{path}"'),
        ("redoc", r"<span[^>]*>(?:(?!</span>).)*{path}"),
    ],
)
def test_a_page_shows_the_operations_without_asking_any_other_host(
    port: int, tmp_path: Path, page: str, rendered: str
) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    screenshot = ARTEFACTS / f"{page}.png"
    screenshot.unlink(missing_ok=True)
    dom, urls = open_page(f"http://127.0.0.1:{port}/{page}", tmp_path, screenshot)
    for path in OPERATIONS:
        assert re.search(rendered.format(path=re.escape(path)), dom), path
    assert screenshot.stat().st_size > 10_000
    assert f"http://127.0.0.1:{port}/openapi.json" in urls
    assert {urlsplit(url).hostname for url in urls} == {"127.0.0.1"}


@pytest.mark.parametrize("page", ["docs", "redoc"])
def test_a_page_names_no_other_host_and_all_it_names_is_there(client: TestClient, page: str) -> None:
    html = client.get(f"/{page}").text
    links = re.findall(r"""(?:src|href|spec-url)=["']([^"']+)["']|url: '([^']+)'""", html)
    urls = [source or url for source, url in links]
    assert len(urls) >= 3
    for url in urls:
        assert url.startswith("/")
        assert not url.startswith("//")
        assert client.get(url).status_code == 200
    assert "//" not in re.sub(r"<!--.*?-->", "", html, flags=re.DOTALL).replace("window.location", "")


@pytest.mark.parametrize(("origin", "path"), [("open", "/"), ("open", "/dashboard/"), ("locked", "/login")])
def test_a_page_names_no_other_host(origin: str, path: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{origin}_origin")
    with urlopen(f"{url}{path}", timeout=30) as response:
        page = response.read().decode()
    assert len(page) > 100
    # Names of XML dialects look like addresses, and nobody asks them for anything.
    hosts = set(re.findall(r"""(?:["'(=]|https?:|wss?:)//([\w.-]+\.\w+)""", page))
    assert hosts - {"www.w3.org", urlsplit(url).hostname} == set()


@needs_browser
@pytest.mark.parametrize(
    ("origin", "path", "shown"), [("open", "/dashboard/", "q-notifications"), ("locked", "/login", 'name="key"')]
)
def test_a_page_asks_no_other_host(
    origin: str, path: str, shown: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{origin}_origin")
    dom, urls = open_page(f"{url}{path}", tmp_path, tmp_path / "page.png")
    assert shown in dom
    assert {urlsplit(asked).netloc for asked in urls} <= {urlsplit(url).netloc}


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]), ids=lambda page: page.name)
def test_a_markdown_page_shows_nothing_from_another_host(page: Path) -> None:
    text = page.read_text()
    images = re.findall(r"!\[[^\]]*\]\(([^) ]+)", text)
    tags = re.findall(r"""<(?!a\b)\w+\b[^>]*?\s(?:src|srcset|href|poster|data)=["']([^"']+)["']""", text)
    for source in [*images, *tags]:
        assert not urlsplit(source).netloc, source


class SwaggerForm:
    """What Swagger UI shows of one operation, with "Try it out" pressed."""

    def __init__(self, driver: webdriver.Chrome, tag: str, operation_id: str) -> None:
        self._waiting = WebDriverWait(driver, 30)
        block = expected_conditions.presence_of_element_located((By.ID, f"operations-{tag}-{operation_id}"))
        self._block = self._waiting.until(block)
        self._find(".opblock-summary-control").click()
        self._find(".try-out__btn").click()

    def execute(self) -> str:
        """Send what Swagger UI has filled in, and return what it shows of the answer."""
        self._find(".execute").click()
        # Selenium's own ``text`` asks of each of a thousand coloured words whether it can be seen.
        return str(self._find(".live-responses-table .response").get_property("innerText")).strip()

    def _find(self, selector: str) -> WebElement:
        found: WebElement = self._waiting.until(lambda _: self._block.find_element(By.CSS_SELECTOR, selector))
        return found


@needs_driver
def test_trying_it_out_leads_from_a_training_to_an_action_without_a_key_pressed(
    open_origin: str, driver: webdriver.Chrome
) -> None:
    driver.get(f"{open_origin}/docs")
    assert SwaggerForm(driver, "training", "start_training_train_post").execute().startswith("200")
    status = SwaggerForm(driver, "training", "get_training_status_training__job_id__status_get")
    # A worker has the lowest priority: on a machine that is busy, two seconds take a minute.
    wait_until(lambda: '"status": "completed"' in status.execute(), 180)
    answer = SwaggerForm(driver, "inference", "predict_inference_post").execute()
    assert answer.startswith("200")
    assert '"action_probs"' in answer
