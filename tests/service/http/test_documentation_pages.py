"""Every page of the service works in a browser that can reach nothing but the service, and the guides name no host."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from fastapi.testclient import TestClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

from api import create_app
from service.settings import Settings
from tests.browser import ARTEFACTS, drive, list_addresses, list_urls, needs_driver
from tests.support import FINAL_STATUSES, PATIENCE_SECONDS, PATIENT, serve, wait_until

ROOT = Path(__file__).parents[3]
KEY = "a key of 22 characters"
OPERATIONS = ["/train", "/inference", "/training/{job_id}/status", "/models/{model_name}", "/health"]


@pytest.fixture(scope="module")
def open_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that asks for no key."""
    # In threads: worker processes go behind all else, so that on a busy machine their jobs would take minutes.
    with serve(
        create_app(Settings(models_dir=tmp_path_factory.mktemp("models"), executor="thread", **PATIENT))
    ) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def locked_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that asks for one."""
    with serve(create_app(Settings(models_dir=tmp_path_factory.mktemp("models"), api_key=KEY))) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A headless browser to click in."""
    with drive(tmp_path_factory.mktemp("profile"), 1280, 2000) as driver:
        yield driver


@needs_driver
@pytest.mark.parametrize(
    ("page", "rendered"),
    [
        ("docs", r'class="opblock-summary-path"[^>]*data-path="{path}"'),
        ("redoc", r"<span[^>]*>(?:(?!</span>).)*{path}"),
    ],
)
def test_a_page_shows_the_operations_without_asking_any_other_host(
    driver: webdriver.Chrome, open_origin: str, page: str, rendered: str
) -> None:
    driver.get(f"{open_origin}/{page}")
    for path in OPERATIONS:
        shown = re.compile(rendered.format(path=re.escape(path)))
        wait_until(lambda shown=shown: bool(shown.search(driver.page_source)))  # type: ignore[misc]
    ARTEFACTS.mkdir(exist_ok=True)
    assert driver.save_screenshot(ARTEFACTS / f"{page}.png")
    urls = list_urls(driver)
    assert f"{open_origin}/openapi.json" in urls
    assert {urlsplit(url).netloc for url in urls} == {urlsplit(open_origin).netloc}


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
    with urlopen(f"{url}{path}") as response:
        page = response.read().decode()
    assert len(page) > 100
    # Names of XML dialects look like addresses, and nobody asks them for anything.
    hosts = set(re.findall(r"""(?:["'(=]|https?:|wss?:)//([\w.-]+\.\w+)""", page))
    assert hosts - {"www.w3.org", urlsplit(url).hostname} == set()


@needs_driver
@pytest.mark.parametrize(
    ("origin", "path", "shown"), [("open", "/dashboard/", ".q-notifications"), ("locked", "/login", "[name=key]")]
)
def test_a_page_asks_no_other_host(
    origin: str, path: str, shown: str, driver: webdriver.Chrome, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(f"{origin}_origin")
    driver.get("about:blank")
    list_addresses(driver)  # what the page before was still asking for
    driver.get(f"{url}{path}")
    wait_until(lambda: bool(driver.find_elements(By.CSS_SELECTOR, shown)))
    assert list_addresses(driver) == {urlsplit(url).netloc}


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
        self._waiting = WebDriverWait(driver, PATIENCE_SECONDS)
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


def ask_status(origin: str) -> str:
    with urlopen(f"{origin}/training/latest/status") as response:
        return str(json.load(response)["status"])


@needs_driver
def test_trying_it_out_leads_from_a_training_to_an_action_without_a_key_pressed(
    open_origin: str, driver: webdriver.Chrome
) -> None:
    driver.get(f"{open_origin}/docs")
    assert SwaggerForm(driver, "training", "start_training_train_post").execute().startswith("200")
    # Asked apart from the page, on which every answer is drawn anew for a second.
    wait_until(lambda: ask_status(open_origin) in FINAL_STATUSES)
    status = SwaggerForm(driver, "training", "get_training_status_training__job_id__status_get")
    assert '"status": "completed"' in status.execute()
    answer = SwaggerForm(driver, "inference", "predict_inference_post").execute()
    assert answer.startswith("200")
    assert '"action_probs"' in answer
