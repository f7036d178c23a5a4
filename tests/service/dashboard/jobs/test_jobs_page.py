"""The table of jobs and their curves in a browser: all of it is in the address."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import pytest
from fastapi import FastAPI
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from api import create_app
from service.jobs.job import Job
from service.jobs.records.database import FILE_NAME
from service.jobs.records.journal import JobJournal
from service.jobs.registry import JobRegistry
from service.schemas.jobs import JobStatus
from service.settings import Settings
from tests.browser import ARTEFACTS, drive, needs_driver
from tests.service.dashboard.page import Page, be_patient
from tests.support import PATIENCE_SECONDS, make_evaluation, make_plan, serve, wait_until

pytestmark = needs_driver

N_JOBS = 60
# Of job 7: values that a form could round, or take for another.
SPECIAL = {
    "reward_functions": {"environment": 1.0, "simple_cartpole": 0.1234567},
    "normalize": {"norm_obs": True, "norm_reward": False},
}


def record_jobs(folder: Path) -> list[str]:
    """Write jobs that have ended: in two environments, with two learning rates and three seeds; return their ids."""
    journal, job_ids = JobJournal(folder / FILE_NAME), []
    for number in range(N_JOBS):
        env_name = "Acrobot-v1" if number % 10 == 9 else "CartPole-v1"
        rate = (0.001, 0.002)[number // 3 % 2]
        chosen = {"env_name": env_name, "model_name": f"run-{number:02}", "seed": number % 3, "learning_rate": rate}
        job = Job(make_plan(**chosen, **(SPECIAL if number == 7 else {})))
        job.start()
        for i in range(1, 21):
            job.progress.advance(100 * i)
            job.progress.publish_metrics({"rollout/ep_rew_mean": float(number + i), "train/loss": 1.0 / i})
        for steps in (1000, 144_070):
            job.progress.publish_evaluation(
                make_evaluation(steps, float(number)).model_dump(exclude={"elapsed_seconds"})
            )
        job.finish(JobStatus.FAILED if number == 7 else JobStatus.COMPLETED, "it broke" if number == 7 else None)
        journal.write([job.make_record(0, 1)])
        job_ids.append(job.job_id)
    journal.close()
    return job_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def job_ids(folder: Path) -> list[str]:
    return record_jobs(folder)


@pytest.fixture(scope="module")
def app(folder: Path, job_ids: list[str]) -> FastAPI:
    return create_app(Settings(models_dir=folder, executor="thread", task_seconds=PATIENCE_SECONDS))


@pytest.fixture(scope="module")
def origin(app: FastAPI) -> Iterator[str]:
    with serve(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with drive(tmp_path_factory.mktemp("profile"), 1440, 1100) as driver:
        be_patient(driver)
        ARTEFACTS.mkdir(exist_ok=True)
        yield driver


@pytest.fixture
def page(driver: webdriver.Chrome, origin: str) -> Iterator[Page]:
    page = Page(driver, origin)
    page.emulate()
    yield page
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []  # type: ignore[no-untyped-call]


@pytest.fixture
def registry(app: FastAPI) -> JobRegistry:
    registry: JobRegistry = app.state.service.registry
    return registry


def list_names(page: Page) -> list[str]:
    names: list[str] = page.run("return [...document.querySelectorAll('.job-name a')].map((link) => link.textContent)")
    return names


def wait_for_names(page: Page, *names: str) -> None:
    wait_until(lambda: list_names(page)[: len(names)] == list(names))


def choose(page: Page, name: str, value: str) -> None:
    """Choose an option once it is offered."""
    page.wait(
        "const select = document.querySelector(`select[name=${arguments[0]}]`), [, value] = arguments;"
        "if (![...select.options].some((option) => option.value === value)) return false;"
        "select.value = value; select.dispatchEvent(new Event('change')); return true",
        name,
        value,
    )


def read_address(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.driver.current_url).query).items()}


def read_lines(page: Page) -> dict[str, Any]:
    """Read the drawn lines by name, of all panels. ECharts keeps a hole where one was taken away."""
    lines = page.run("return grpoCurves.options().flatMap((option) => option?.series ?? []).filter(Boolean)")
    return {line["name"]: line for line in lines}


def test_the_table_sorts_filters_and_turns_pages_and_a_second_tab_shows_the_same(page: Page) -> None:
    page.open("")
    wait_for_names(page, "run-59", "run-58")
    assert page.read("h1 + p") == f"{N_JOBS} jobs"
    page.click("th.c-reward button")
    wait_until(lambda: read_address(page).get("sort") == "-mean_reward")
    page.click("th.c-reward button")
    wait_for_names(page, "run-00", "run-01")
    page.click(".pager button[aria-label='Next page']")
    wait_for_names(page, "run-50")
    page.find("input[type=search]").send_keys("run-0")
    wait_until(lambda: read_address(page).get("q") == "run-0")
    wait_for_names(page, "run-00")
    choose(page, "status", "failed")
    wait_until(lambda: list_names(page) == ["run-07"])
    assert read_address(page) == {"sort": "mean_reward", "q": "run-0", "status": "failed"}
    page.driver.get(page.driver.current_url)
    wait_until(lambda: list_names(page) == ["run-07"])
    assert page.find("input[type=search]").get_attribute("value") == "run-0"
    page.find("input[type=search]").send_keys("nothing")
    page.click(".jobs-empty button", "Show all")
    wait_until(lambda: len(list_names(page)) == 50)


def test_the_keyboard_keeps_its_place_while_the_table_changes(
    page: Page, registry: JobRegistry, job_ids: list[str]
) -> None:
    registry.label(job_ids[59], {"tags": ["kept"]})
    page.open("")
    wait_for_names(page, "run-59")
    menu = "[aria-label='Actions of run-59']"
    places = ["th.c-reward button", "[href$='{}']", ".tag", menu, ".pager [aria-label='Next page']"]
    for number, place in enumerate(each.format(job_ids[59]) for each in places):
        page.run("const place = document.querySelector(arguments[0]); place.focus(); place.isOld = true", place)
        registry.label(job_ids[59], {"note": f"look {number}"})
        page.wait("const place = document.querySelector(arguments[0]); return place && !place.isOld", place)
        assert page.run("return document.activeElement.matches(arguments[0])", place)
    # On the last page there is no next one.
    page.press(Keys.ENTER)
    wait_for_names(page, "run-09")
    page.wait("return document.activeElement.matches(`.pager [aria-label='Previous page']`)")
    page.press(Keys.ENTER)
    wait_for_names(page, "run-59")

    # An open menu stays as it is; what has changed meanwhile is shown when it closes.
    page.run("document.querySelector(arguments[0]).focus()", menu)
    page.press(Keys.ENTER)
    page.find(".menu-list button", "Repeat")
    page.press(Keys.TAB)
    page.run("const { show } = grpoJobs; grpoJobs.show = (page) => { show(page); globalThis.isSent = true; };")
    registry.label(job_ids[59], {"display_name": "renamed"})
    page.wait("return globalThis.isSent")
    assert page.run("return document.activeElement.textContent").endswith("Open")
    page.press(Keys.ESCAPE)
    wait_for_names(page, "renamed")
    assert page.run("return document.activeElement.matches(`[aria-label='Actions of renamed']`)")
    # One that the keyboard leaves closes, so that the table goes on.
    page.press(Keys.ENTER)
    page.find(".menu-list button", "Repeat")
    page.run("document.querySelector('input[type=search]').focus()")
    page.wait("return document.querySelector('details[open]') === null")
    registry.label(job_ids[59], {"display_name": None, "note": "", "tags": []})


def test_ages_grow_although_nothing_happens(page: Page, registry: JobRegistry, job_ids: list[str]) -> None:
    page.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Pacific/Kiritimati"})
    try:
        page.open("?x=time")
        wait_for_names(page, "run-59")
        page.run("globalThis.now = Date.now; Date.now = () => now() + 3 * 3600e3")
        page.run("document.dispatchEvent(new Event('visibilitychange'))")  # as does every minute
        page.find(".c-created", "3 h ago")
        page.run("Date.now = () => now() + 8 * 86400e3; document.dispatchEvent(new Event('visibilitychange'))")
        day = registry.get(job_ids[59]).describe().created_at.astimezone(ZoneInfo("Pacific/Kiritimati"))
        assert page.read(".c-created", "-") == f"{day:%Y-%m-%d}"
        # What is over time in the charts stands beside times in UTC.
        point = "{seriesId: 'line', seriesName: 'job', value: [0, 1]}"
        words = page.wait(f"return grpoCurves.options()[0].tooltip[0].formatter([{point}]).textContent")
        assert words.startswith("1/1/1970, 12:00:00 AM UTC")
        assert page.run("return grpoCurves.options()[0].useUTC")
    finally:
        page.driver.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": ""})


def test_what_a_browser_keeps_out_of_the_address_is_shown_all_the_same(page: Page) -> None:
    page.open("")
    wait_for_names(page, "run-59")
    page.run("history.replaceState = () => { throw new DOMException('too often', 'SecurityError'); }")
    page.find("input[type=search]").send_keys("run-0")
    wait_for_names(page, "run-09")
    assert read_address(page) == {}
    page.run("delete history.replaceState")
    wait_until(lambda: read_address(page) == {"q": "run-0"})


def test_a_metric_is_offered_by_its_title_and_its_key(page: Page) -> None:
    page.open("")
    wait_until(lambda: "run-59, evaluation" in read_lines(page))
    offered = page.run("return [...document.querySelectorAll('select[name=y] option')].map((one) => one.textContent)")
    assert offered == ["Episode reward", "Training mean · rollout/ep_rew_mean", "train/loss"]


def test_rows_are_not_called_groups_which_are_something_else_in_grpo(page: Page) -> None:
    page.open("")
    wait_for_names(page, "run-59")
    words = "return document.querySelector('.jobs-bar [name=group]').closest('label').textContent"
    assert "group" not in page.run(words).lower()


def test_settings_that_differ_have_a_column(page: Page) -> None:
    page.open("")
    wait_for_names(page, "run-59")
    heads = page.run("return [...document.querySelectorAll('th.c-setting')].map((cell) => cell.textContent)")
    assert heads == ["Learning rate"]
    # Before what tells less, unless the table is sorted by that.
    following = "return document.querySelector('th.c-setting').nextSibling.className"
    assert page.run(following) == "c-seed"


def test_a_laptop_shows_the_reward_function_and_what_the_table_is_sorted_by(page: Page) -> None:
    page.emulate(width=1280)
    for sort, head in (("-created_at", "Created"), ("seed", "Seed")):
        page.open(f"?q=run-0&sort={sort}")
        wait_until(lambda: "run-07" in list_names(page))
        shown = page.run(
            "const end = document.querySelector('td.c-menu').getBoundingClientRect().left;"
            "return [...document.querySelectorAll('.jobs-table th[scope=col]')]"
            ".filter((cell) => cell.getBoundingClientRect().right <= end)"
            ".map((cell) => cell.querySelector('button')?.firstChild.textContent ?? cell.textContent)"
        )
        assert {"Reward function", head} <= set(shown)


def test_a_colour_belongs_to_a_job_whatever_else_is_taken_away(page: Page, job_ids: list[str]) -> None:
    shown = f"{job_ids[1][:8]}.0,{job_ids[2][:8]}.3"
    page.open(f"?show={shown}&sort=created_at")
    wait_until(lambda: {"run-01, evaluation", "run-02, evaluation"} <= read_lines(page).keys())
    colours = {name: line["color"] for name, line in read_lines(page).items()}
    page.click("[aria-label='Show the curves of run-01']")
    page.click("[aria-label='Show the curves of run-00']")
    wait_until(lambda: "run-00, evaluation" in read_lines(page))
    lines = read_lines(page)
    assert "run-01, evaluation" not in lines
    assert lines["run-02, evaluation"]["color"] == colours["run-02, evaluation"]
    assert lines["run-00, evaluation"]["color"] == colours["run-01, evaluation"]  # which is free again
    assert set(read_address(page)["show"].split(",")) == {f"{job_ids[2][:8]}.3", f"{job_ids[0][:8]}.0"}
    page.photograph("jobs")


def test_a_page_that_was_on_its_way_takes_no_job_out_of_the_charts(page: Page, job_ids: list[str]) -> None:
    page.open(f"?show={job_ids[1][:8]}.0&sort=created_at")
    page.wait("return document.querySelector('input.tick:checked') !== null")
    page.run("globalThis.pages = []; const show = grpoJobs.show; grpoJobs.show = (p) => { pages.push(p); show(p); };")
    page.click("[aria-label='Show the curves of run-02']")
    page.wait("return pages.length > 0")
    page.click("[aria-label='Show the curves of run-03']")
    page.run("grpoJobs.show(pages[0]);")  # which does not know of run-03
    page.click("[aria-label='Show the curves of run-04']")
    ids = [job_ids[i][:8] for i in (1, 2, 3, 4)]
    wait_until(lambda: [shown[:8] for shown in read_address(page)["show"].split(",")] == ids)


def test_there_is_one_panel_per_environment_and_any_metric(page: Page, job_ids: list[str]) -> None:
    page.open(f"?show={job_ids[8][:8]}.0,{job_ids[9][:8]}.1")
    titles = "return [...document.querySelectorAll('.curve h2')].map((title) => title.textContent)"
    wait_until(lambda: page.run(titles) == ["CartPole-v1", "Acrobot-v1"])
    choose(page, "y", "train/loss")
    wait_until(lambda: "run-08" in read_lines(page))
    choose(page, "x", "relative")
    page.click(".curve-bar input[type=checkbox]")
    page.wait("return grpoCurves.options()[0].yAxis[0].type === 'log'")
    assert {name: read_address(page)[name] for name in "yx"} == {"y": "train/loss", "x": "relative"}
    wait_until(lambda: read_lines(page)["run-08"]["data"][-1][0] < 100)  # seconds, where there were 2,000 steps
    page.photograph("metric")


def test_time_on_a_plateau_counts_in_a_smoothed_line(page: Page, job_ids: list[str]) -> None:
    page.open(f"?show={job_ids[8][:8]}.0")
    wait_until(lambda: "run-08, evaluation" in read_lines(page))
    # From 400 to 499 within a fifth of the run, and 500 for the rest of it.
    steps = [*range(100), *range(100, 500, 8), 499]
    values = [float(min(500, 400 + step)) for step in steps]
    job = {"id": "flat", "name": "flat", "env": "Flat-v0", "recipe": "flat", "start": 0, "keys": [], "final": None}
    column = [steps, [float(step) for step in steps], values, [], []]
    job |= {"lines": {"rollout/ep_rew_mean": column}, "evaluations": []}
    page.run("grpoCurves.set(arguments[0], 1)", job)
    wait_until(lambda: "flat, training mean" in read_lines(page))
    smoothed = dict(read_lines(page)["flat, training mean"]["data"])
    assert smoothed[99] < 499  # it is smoothed
    assert smoothed[124] > 499  # and has forgotten the rise five percent of the run later


def test_nothing_is_drawn_or_sent_twice(page: Page, job_ids: list[str]) -> None:
    page.open(f"?show={job_ids[8][:8]}.0,{job_ids[6][:8]}.1")
    wait_until(lambda: {"run-08, evaluation", "run-06, evaluation"} <= read_lines(page).keys())
    page.run(
        "globalThis.seen = {drawn: 0, sent: 0}; const [frame, set] = [requestAnimationFrame, grpoCurves.set];"
        "globalThis.requestAnimationFrame = (f) => { seen.drawn += f.name === 'drawNow'; return frame(f); };"
        "grpoCurves.set = (...job) => { seen.sent += 1; set(...job); };"
    )
    page.click("th.c-reward button")
    wait_for_names(page, "run-59", "run-58", "run-57")
    page.find("input[type=search]").send_keys("run-0")
    wait_for_names(page, "run-09", "run-08")
    assert page.run("return seen") == {"drawn": 0, "sent": 0}
    choose(page, "y", "train/loss")
    wait_until(lambda: {"run-08", "run-06"} <= read_lines(page).keys())
    choose(page, "y", "reward")  # which the browser has still
    wait_until(lambda: {"run-08, evaluation", "run-06, evaluation"} <= read_lines(page).keys())
    choose(page, "status", "failed")
    wait_until(lambda: list_names(page) == ["run-07"])
    assert page.run("return seen.sent") == 2


def test_a_group_is_drawn_as_the_mean_of_its_seeds_with_a_band(page: Page, job_ids: list[str]) -> None:
    page.open(f"?group=recipe&sort=created_at&show={job_ids[0][:8]}.0,{job_ids[1][:8]}.1,{job_ids[2][:8]}.2")
    wait_until(lambda: "run-00, evaluation, mean of 3 (shaded: least to greatest)" in read_lines(page))
    lines = read_lines(page)
    # At every step the seeds have 0, 1 and 2, too few for an interval.
    assert {round(y, 9) for _, y in lines["run-00, evaluation, mean of 3 (shaded: least to greatest)"]["data"]} == {1.0}
    assert [lines[name]["data"][0][1] for name in ("low", "high")] == [0.0, 2.0]  # the upper one stands on the lower
    # Nothing is cut off where all lie close together.
    page.run(
        "for (let i = 0; i < 3; i++) grpoCurves.set({id: `high-${i}`, name: 'high', env: 'High-v0', recipe: 'high',"
        "start: 0, keys: [], lines: {}, final: null, evaluations: [[1000, 1, 9355 + i], [2000, 2, 9357 + i]]}, 7);"
    )
    axis = page.wait("return grpoCurves.options()[1].yAxis[0]")
    assert [axis["min"], axis["max"]] == [9354, 9360]  # whole numbers around 9,355 and 9,359, with a fifth of 4
    page.click(".group-row .opener")
    wait_until(lambda: len(list_names(page)) > 3)
    assert read_address(page)["open"]
    page.photograph("groups")


# Would be a property that runs a script, if what people write were read as NiceGUI's own notation.
NAME = 'The best" :title="window.isStruck = true" run-33'


def test_a_job_is_named_tagged_hidden_and_deleted(page: Page, registry: JobRegistry, job_ids: list[str]) -> None:
    page.open("?q=run-33")
    wait_for_names(page, "run-33")

    def act(text: str) -> None:
        page.click("[aria-label^='Actions of']")
        page.click(".menu-list button", text)

    act("Name, tags, note")
    page.find(".dialog input[aria-label='Name']").send_keys(NAME)
    page.find(".dialog input[aria-label^='Tags']").send_keys("paper, b")
    page.find(".dialog textarea").send_keys("Why?")
    page.click(".dialog button", "Save")
    wait_for_names(page, NAME)
    labels = registry.get(job_ids[33]).labels
    assert (labels.display_name, labels.tags, labels.note) == (NAME, ["paper", "b"], "Why?")
    page.click(".tag", "paper")
    wait_until(lambda: read_address(page).get("tag") == "paper")
    wait_until(lambda: not page.shows(".dialog"))
    act("Hide")
    page.find(".jobs-empty")
    page.click(".hidden-box input")
    wait_for_names(page, NAME)
    act("Delete")
    page.find(".dialog", f"Delete the job {NAME}?")
    assert page.shows(f"[role=dialog][aria-label={json.dumps(f'Delete the job {NAME}?')}]")
    assert not page.run("return window.isStruck")
    page.press(Keys.ESCAPE)
    wait_until(lambda: not page.shows(".dialog"))
    act("Delete")
    page.click(".dialog button", "Delete the job")
    wait_until(lambda: job_ids[33] not in {line.job_id for line in registry.list_lines()})


def test_a_job_has_an_address_of_its_own(page: Page, job_ids: list[str]) -> None:
    page.open(f"jobs/{job_ids[7]}")
    page.find("h1", "run-07")
    page.find(".job .verdict", "it broke")
    page.find(".events .bad", "Failed at step 2,000: it broke")
    moments = page.run(
        "return [...document.querySelectorAll('.events li')].map((line) => line.querySelector('time').textContent)"
    )
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", moment) for moment in moments)
    page.find("[aria-label=Evaluations]", "best")
    page.find(".stage", "Nothing was saved")
    choose(page, "y", "train/loss")
    page.wait("return [...document.querySelectorAll('.curve h2')].some((title) => title.textContent === 'train/loss')")
    page.photograph("job")
    page.click(".job a", "Repeat")
    page.find("h1", "New job")
    sent = json.loads(page.read(".aside pre", '"learning_rate": 0.001').split("-d '")[1].rstrip("'"))
    assert sent == {"env_name": "CartPole-v1", "learning_rate": 0.001, **SPECIAL}


def test_a_job_that_is_gone_is_said_to_be(page: Page) -> None:
    page.open("jobs/none")
    page.find(".note.bad", "There is no such job.")
    page.driver.get_log("browser")  # type: ignore[no-untyped-call]  # of the status 404


@pytest.mark.parametrize("path", ["", "?group=recipe", "jobs/{}"])
def test_a_phone_shows_what_matters_first_and_nothing_sideways(page: Page, job_ids: list[str], path: str) -> None:
    page.emulate(390, 844)
    page.open(path.format(job_ids[5]))
    wait_until(lambda: bool(read_lines(page)))
    # In one script: the panels are made anew when other jobs come.
    first, leading, width = page.run(
        "const top = (card) => card.getBoundingClientRect().top;"
        "return [Math.min(...[...document.querySelectorAll('.page .card')].map(top)),"
        "top(document.querySelector(arguments[0])), document.documentElement.scrollWidth]",
        ".card.job" if "jobs" in path else ".curve",
    )
    assert first == leading
    assert width == 390
    sizes = (
        "return [...document.querySelectorAll('.tick-area')].map((area) => area.getBoundingClientRect())"
        ".map(({ width, height }) => Math.min(width, height))"
    )
    assert min(page.run(sizes), default=24) >= 24
    if "jobs" in path:
        page.wait(
            "const box = document.querySelector('[aria-label=\"Table of evaluations\"]');"
            "return box.scrollWidth === box.clientWidth"
        )
    page.photograph(f"phone-{'job' if 'jobs' in path else 'jobs'}")


def test_charts_stay_in_view(page: Page) -> None:
    page.open("")
    wait_for_names(page, "run-59")
    wait_until(lambda: bool(read_lines(page)))
    page.run("scrollTo(0, 1200)")
    page.wait("const { top } = document.querySelector('.curve').getBoundingClientRect(); return 0 < top && top < 300")


def test_a_table_that_goes_on_at_the_right_shows_it(page: Page) -> None:
    page.emulate(1100, 900)
    page.open("")
    wait_for_names(page, "run-59")
    page.wait("return document.querySelector('.table-scroll').classList.contains('goes-on')")
    page.photograph("jobs-narrow")
    page.run("const box = document.querySelector('.table-scroll'); box.scrollLeft = box.scrollWidth")
    page.wait("return !document.querySelector('.table-scroll').classList.contains('goes-on')")


def test_a_chart_says_what_its_lines_are(page: Page) -> None:
    page.open("")
    wait_until(lambda: bool(read_lines(page)))
    words = "return [...document.querySelectorAll('.line-key li')].map((item) => item.textContent)"
    training = "training mean: last 100 episodes, sampled actions"
    wait_until(lambda: page.run(words) == ["evaluation", training, "95 % interval over episodes"])
    choose(page, "y", "train/loss")
    wait_until(lambda: page.run(words) == ["smoothed", "as reported"])
    page.click("[aria-label='Show the curves of run-49']")
    wait_until(lambda: page.run(words)[:2] == ["run-59", "run-49"])
