"""Measure the dashboard in a browser: 500 recorded runs in the table, 20 curves of 10,000 reported points.

``python -m benchmarks.serving.dashboard`` prints JSON; ``--keep FOLDER`` writes the runs there and stops.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from selenium import webdriver
from selenium.webdriver.common.by import By

from api import create_app
from benchmarks.lib.http_jobs import make_plan
from service.jobs.job import Job
from service.jobs.records.database import FILE_NAME
from service.jobs.records.journal import JobJournal
from service.schemas.jobs import EpisodeFigures, JobStatus
from service.settings import Settings
from tests.browser import drive
from tests.support import serve

N_RUNS, N_CURVES = 500, 20
N_POINTS, N_SHORT_POINTS = 10_000, 60
_N_REPETITIONS = 9
_ENVIRONMENTS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0")
_PATIENCE_SECONDS = 60.0


def write_runs(models_dir: Path) -> list[str]:
    """Write runs that have ended, of several environments, settings and seeds; return the ids, the long ones last."""
    models_dir.mkdir(exist_ok=True)
    journal = JobJournal(models_dir / FILE_NAME)
    generator, job_ids = np.random.default_rng(0), []
    for number in range(N_RUNS):
        settings = {
            "env_name": _ENVIRONMENTS[0 if number >= N_RUNS - N_CURVES else number // 40 % len(_ENVIRONMENTS)],
            "model_name": f"run-{number:03}",
            "seed": number % 5,
            "learning_rate": (1e-4, 3e-4, 1e-3)[number // 5 % 3],
            "gamma": (0.98, 0.99)[number // 15 % 2],
            "total_timesteps": 320_000,
        }
        job = Job(make_plan(settings))
        _report(job, N_POINTS if number >= N_RUNS - N_CURVES else N_SHORT_POINTS, generator)
        journal.write([job.make_record(0, 1)])
        job_ids.append(job.job_id)
    journal.close()
    return job_ids


def _report(job: Job, n_points: int, generator: np.random.Generator) -> None:
    """Have a job report a noisy curve, evaluations on the way, and an end."""
    job.start()
    best, pace, noise = generator.uniform(200, 500), generator.uniform(2, 8), generator.normal(size=(n_points, 3))
    for i in range(n_points):
        share = (i + 1) / n_points
        reward = best * (1 - math.exp(-pace * share))
        job.progress.advance(int(320_000 * share))
        job.progress.publish_metrics(
            {
                "rollout/ep_rew_mean": reward * 0.85 + 12 * noise[i, 0],
                "rollout/zero_std_group_fraction": min(1.0, abs(0.2 * noise[i, 1])),
                "train/entropy_loss": -0.69 * (1 - 0.7 * share) + 0.02 * noise[i, 2],
                "train/approx_kl": abs(0.01 + 0.004 * noise[i, 1]),
                **{f"train/other_{k}": noise[i, k % 3] for k in range(12)},
            }
        )
        if i % (n_points // 20) == 0:
            job.progress.publish_evaluation(
                {**_make_figures(reward, 20.0 * (1.2 - share)), "timesteps": int(320_000 * share)}
            )
    final = {**_make_figures(reward, 6.0), "timesteps": 320_000, "seconds": 1.0, "complete": True}
    job.progress.publish_final_evaluation(final)
    job.finish(JobStatus.COMPLETED if generator.uniform() > 0.1 else JobStatus.STOPPED)


def _make_figures(mean: float, half: float) -> dict[str, object]:
    return EpisodeFigures(
        n_episodes=10,
        mean_reward=mean,
        std_reward=half,
        mean_reward_ci95=(mean - half, mean + half),
        min_reward=mean - 2 * half,
        max_reward=mean + 2 * half,
        mean_length=mean,
        success_rate=None,
        success_rate_ci95=None,
    ).model_dump()


# Runs a click or a change, and waits until a condition holds and the browser has painted; returns milliseconds.
_TIME = """
const [act, holds, done] = [new Function(arguments[0]), new Function(arguments[1]), arguments[2]];
const start = performance.now();
act();
const end = () => done(performance.now() - start);
const look = () => (holds() ? requestAnimationFrame(() => setTimeout(end, 0)) : setTimeout(look, 2));
look();
"""
_ROWS = "document.querySelectorAll('.runs-table tbody tr').length"
_LINES = "grpoCurves.options()[0]?.series.filter((one) => one.name.endsWith('training mean')).length"


def measure_page(driver: webdriver.Chrome, url: str) -> dict[str, float]:
    """Measure the loading of the page: until its table and until all curves are painted, in ms since the navigation."""
    figures: dict[str, list[float]] = {"first contentful paint, ms": [], "table, ms": [], f"{N_CURVES} curves, ms": []}
    watch = (
        "const done = arguments[0]; const look = () => ({condition} ? requestAnimationFrame(() => "
        "setTimeout(() => done(performance.now()), 0)) : setTimeout(look, 5)); look();"
    )
    for _ in range(_N_REPETITIONS):
        driver.get(url)
        table = driver.execute_async_script(watch.replace("{condition}", f"{_ROWS} === 50"))
        curves = driver.execute_async_script(
            watch.replace(
                "{condition}", f"globalThis.grpoCurves?.options()[0]?.series.length > 0 && {_LINES} === {N_CURVES}"
            )
        )
        paint = driver.execute_script("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
        for name, value in zip(figures, (paint, table, curves), strict=True):
            figures[name].append(value)
    return {name: round(statistics.median(values), 1) for name, values in figures.items()}


def measure_empty_page(driver: webdriver.Chrome, origin: str) -> float:
    """Measure what any page of the dashboard takes until it talks with the server, in ms."""
    samples = []
    look = (
        "const done = arguments[0]; const look = () => (window.did_handshake ? done(performance.now()) : "
        "setTimeout(look, 5)); look();"
    )
    for _ in range(_N_REPETITIONS):
        driver.get(f"{origin}/dashboard/nowhere")
        samples.append(float(driver.execute_async_script(look)))
    return round(statistics.median(samples), 1)


def measure_clicks(driver: webdriver.Chrome) -> dict[str, float]:
    """Measure what visitors do, until the browser has painted it: medians in ms."""
    click = "document.querySelectorAll('.runs-table thead th.c-reward button')[0].click()"
    slide = "const s = document.querySelector('.smoothing input'); s.value = {}; s.dispatchEvent(new Event('input'))"
    search = (
        "const q = document.querySelector('.runs-bar [name=q]'); q.value = '{}'; q.dispatchEvent(new Event('input'))"
    )
    select = "const s = document.querySelector('select[name={}]'); s.value = '{}'; s.dispatchEvent(new Event('change'))"

    def time_each(steps: list[tuple[str, str]]) -> float:
        samples = [
            driver.execute_async_script(_TIME, act, holds) for _ in range(_N_REPETITIONS) for act, holds in steps
        ]
        return float(round(statistics.median(samples), 1))

    sorted_on = "return document.querySelector('th.c-reward').ariaSort === '{}' && " + f"{_ROWS} === 50"
    two_frames = "return (globalThis.frames2 = (globalThis.frames2 ?? 0) + 1) % 3 === 0"
    return {
        "sort by reward, ms": time_each(
            [(click, sorted_on.format("descending")), (click, sorted_on.format("ascending"))]
        ),
        "search, ms": time_each(
            [(search.format("run-01"), f"return {_ROWS} === 10"), (search.format(""), f"return {_ROWS} === 50")]
        ),
        "group by all but the seed, ms": time_each(
            [
                (select.format("group", "recipe"), "return !!document.querySelector('.group-row')"),
                (select.format("group", ""), "return !document.querySelector('.group-row')"),
            ]
        ),
        "smooth 20 curves, ms": time_each([(slide.format(0.9), two_frames), (slide.format(0.3), two_frames)]),
        "another x axis, ms": time_each(
            [(select.format("x", "relative"), two_frames), (select.format("x", "steps"), two_frames)]
        ),
        "another metric of 20 runs, ms": time_each(
            [
                (
                    select.format("y", "train/approx_kl"),
                    "return grpoCurves.read('train/approx_kl').every((run) => run.points.length > 99)",
                ),
                (
                    select.format("y", "reward"),
                    "return grpoCurves.read('rollout/ep_rew_mean').every((run) => run.points.length > 99)",
                ),
            ]
        ),
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=Path, help="write the runs into this models folder, and stop")
    keep: Path | None = parser.parse_args().keep
    if keep is not None:
        write_runs(keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        job_ids = write_runs(Path(folder) / "models")
        figures: dict[str, float] = {"writing the runs, s": round(time.perf_counter() - started, 1)}
        shown = ",".join(f"{job_id[:8]}.{i}" for i, job_id in enumerate(job_ids[-N_CURVES:]))
        app = create_app(Settings(models_dir=Path(folder) / "models", executor="thread"))
        with serve(app) as port, drive(Path(folder) / "profile", 1440, 1000) as driver:
            driver.set_script_timeout(_PATIENCE_SECONDS)
            url = f"http://127.0.0.1:{port}/dashboard/?show={shown}"
            driver.get(url)  # the first visitor's server imports the pages
            time.sleep(2)
            figures["a page with nothing on it, ms"] = measure_empty_page(driver, f"http://127.0.0.1:{port}")
            figures |= measure_page(driver, url) | measure_clicks(driver)
            figures["elements"] = len(driver.find_elements(By.CSS_SELECTOR, "*"))
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
