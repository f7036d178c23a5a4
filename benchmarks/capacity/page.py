"""The page ``docs/capacity.md``: what a number of cores does, reckoned from measured figures."""

import math
from pathlib import Path

import numpy as np

from benchmarks.capacity.figures import Check, Figures, read_batch_rate, read_replica, read_steps_per_second
from benchmarks.capacity.simulation import simulate_queue, simulate_replicas

PATH = Path(__file__).parents[2] / "docs" / "capacity.md"
#: How far the simulation may be from a measurement.
TOLERANCE = 0.2
_WORKERS = (1, 2, 8, 32, 100, 1000)
_RATES = (1_000, 10_000, 100_000, 1_000_000)
# Fuller queues get long: at 90 % a job waits twice as long as at 80 %.
_UTILISATION = 0.8
_REPLICA_UTILISATION = 0.7
_JOB_STEPS = "10000"
_N_SIMULATED_JOBS = 2000
_N_SIMULATED_REQUESTS = 8_000
# Every replica is a queue of its own, so that more of them show nothing more.
_N_SIMULATED_REPLICAS = 2
_CHECKPOINTS_PER_SECOND = 1 / 60
_MAX_KEPT_JOBS = 10_000


def write_page(figures: Figures) -> str:
    """Write the whole page."""
    rates, replica = read_steps_per_second(), read_replica()
    return f"""# Capacity

What a given number of cores can do, from one to a thousand workers and a million inferences a second. The figures were
measured on {figures.machine}; everything else is calculated from them, as each table explains.
`python -m benchmarks.capacity` writes this page, `python -m benchmarks.capacity measure` measures anew, and
`python -m benchmarks.capacity check` fails if the simulation is more than {TOLERANCE:.0%} from what was measured.

## Measured

{_list_figures(figures, rates, replica)}

CartPole-v1's steps/s are of jobs that evaluate their policies, as jobs do by default, and the seconds of a job are of
jobs that do not (`n_eval_episodes=0`): the one does not follow from the other.

{_write_training(figures, rates)}

{_write_serving(figures, replica)}

## The simulation beside measurements

The times of a job and of an answer come from one alone; the simulation then predicts several at once on the same
machine.

{_tabulate_checks(figures.checks)}
"""


def _write_training(figures: Figures, rates: dict[str, float]) -> str:
    job_seconds = figures.job_seconds[_JOB_STEPS]
    short, long = (_count_workers(figures, seconds) for seconds in (job_seconds, math.inf))
    kept_megabytes = _MAX_KEPT_JOBS * figures.job_bytes / 1e6
    return f"""## Training

Assumed: each worker is one core and runs one job of {int(_JOB_STEPS):,} steps of CartPole-v1 after the other, for
{job_seconds:.1f} s each; cores are as fast as the measured one, and share nothing that slows them (memory bandwidth,
heat); jobs come at random, so many that workers are busy {_UTILISATION:.0%} of the time. How long a job waits is
simulated (`benchmarks/capacity/simulation.py`); the rest is multiplication.

{_tabulate_training(figures, rates)}

One server plans jobs, reads their reports and writes them down in one process, which has one core. That is what
breaks first: at {short:,} workers with jobs of {job_seconds:.1f} s, and at {long:,} with jobs of hours. Until then more
cores in one machine, or `GRPO_EXECUTOR=ray` for cores of several, are all that is needed. What to change then:

- **Longer jobs.** A start costs the server {figures.job_server_ms:.0f} ms. A sweep of short trials is the worst case.
- **Several servers**, each with its models folder and its share of the users, on the same Ray cluster: they share
  nothing, so N of them take N times the jobs. Replicas serve from any number of folders, one each.
- **Fewer checkpoints** (`checkpoint_every`) where the disk is slow: writing a file of their size so that it survives a
  power cut took {figures.model_save_ms:.1f} ms on the measured disk.
- The jobs' file is bounded: {_MAX_KEPT_JOBS:,} remembered jobs are {kept_megabytes:,.0f} MB.
- What Ray itself adds to a report on its way is not in these figures."""


def _write_serving(figures: Figures, replica: dict[str, float]) -> str:
    gigabits = 8e6 * figures.exchange_bytes / 1e9
    n_batch_cores = math.ceil(1e6 / read_batch_rate() / _REPLICA_UTILISATION)
    return f"""## Serving

Assumed: one observation of CartPole-v1 to a 64x64 policy in each request, over kept connections; each replica has a
core to itself, and the kernel or a proxy spreads requests at random; replicas are busy {_REPLICA_UTILISATION:.0%} of
the time; clients, proxies and TLS have cores of their own. Latency in the server is simulated: each replica answers one
after the other, and requests come at random.

{_tabulate_serving(figures, replica)}

What breaks first, in order:

- **One replica** at {1e6 / figures.answer_us:,.0f} answers/s: add processes on the port (`--replicas`).
- **The cores of one machine.** Processes share nothing but the kernel: two did {replica["measured"]:.2f} times per
  processor second what one does ([measured](../benchmarks/results/speed/replicas.md)), reckoned with as
  {replica["efficiency"]:.2f}. Add machines behind a proxy.
- **The proxy.** It handles every request too. Once it takes as many cores as the replicas, spread connections without
  one: DNS, or a load balancer of layer 4.
- **The network**: a million exchanges a second are {gigabits:.1f} Gbit/s before TCP's headers.
- **One observation per request.** A client with many observations at once should send them as one array to
  `POST /inference/batch`: {n_batch_cores} core{"s" * (n_batch_cores > 1)} would do for a million a second. Change this
  before buying the cores of the last row."""


def _list_figures(figures: Figures, rates: dict[str, float], replica: dict[str, float]) -> str:
    lines = ["| what | figure | by |", "|---|---|---|"]
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        is_mujoco = name.endswith("v5")
        source, settings = ("mujoco", ", groups of four branches of 64 steps") if is_mujoco else ("training", "")
        lines.append(
            f"| steps/s of a core, {name}, learning included{settings} | {rate:,.0f} | `measure_speed {source}` |"
        )
    own = "`capacity measure`"
    lines += [
        f"| a job of {int(steps):,} steps, request to completed, s | {seconds:.2f} | {own} |"
        for steps, seconds in figures.job_seconds.items()
    ]
    lines += [
        f"| the server's own processor time for a short job, ms | {figures.job_server_ms:.1f} | {own} |",
        f"| the same for a second of a running job, ms | {figures.running_server_ms:.1f} | {own} |",
        f"| a job in the jobs' file, KB | {figures.job_bytes / 1e3:.1f} | {own} |",
        f"| a model file (64x64, with Adam's moments), KB | {figures.model_bytes / 1e3:.0f} | {own} |",
        f"| to read and verify it, ms | {figures.model_load_ms:.1f} | {own} |",
        f"| to write it so that it survives a power cut, ms | {figures.model_save_ms:.1f} | {own} |",
        f"| a checkpoint of such a job, KB | {figures.checkpoint_bytes / 1e3:.0f} | {own} |",
        f"| for the training to make one, ms | {figures.checkpoint_ms:.1f} | {own} |",
        f"| processor time of a replica for an answer, µs | {figures.answer_us:.0f} | {own} |",
        f"| bytes of a request and its answer | {figures.exchange_bytes} | {own} |",
        f"| memory of a replica, MiB | {replica['memory_mib']:.0f} | `measure_speed replicas` |",
        f"| observations/s of a core, as arrays | {read_batch_rate():,.0f} | `measure_speed batches` |",
    ]
    return "\n".join(lines)


def _count_workers(figures: Figures, job_seconds: float) -> int:
    """Return the number of workers whose jobs take all of the server's one core."""
    per_second_ms = figures.running_server_ms + figures.job_server_ms / job_seconds
    return int(1e3 / per_second_ms / _UTILISATION)


def _tabulate_training(figures: Figures, rates: dict[str, float]) -> str:
    lines = [
        "| workers | steps/s, CartPole-v1 | steps/s, HalfCheetah-v5 | jobs/h | mean wait, s | the server's core | "
        "checkpoints, MB/s |",
        "|---|---|---|---|---|---|---|",
    ]
    job_seconds = figures.job_seconds[_JOB_STEPS]
    for n_workers in _WORKERS:
        per_second = _UTILISATION * n_workers / job_seconds
        busy = _UTILISATION * n_workers
        load = per_second * figures.job_server_ms / 1e3 + busy * figures.running_server_ms / 1e3
        too_much = " **too much**" if load > 1 else ""
        lines.append(
            f"| {n_workers:,} | {busy * rates['CartPole-v1']:,.0f} | {busy * rates['HalfCheetah-v5']:,.0f} | "
            f"{3600 * per_second:,.0f} | {_simulate_wait(n_workers, job_seconds):.2f} | {load:.0%}{too_much} | "
            f"{busy * figures.checkpoint_bytes * _CHECKPOINTS_PER_SECOND / 1e6:.3f} |"
        )
    return "\n".join(lines)


def _simulate_wait(n_workers: int, job_seconds: float) -> float:
    rng = np.random.default_rng(n_workers)
    gaps = rng.exponential(job_seconds / (_UTILISATION * n_workers), _N_SIMULATED_JOBS)
    stays = simulate_queue(np.cumsum(gaps).tolist(), [job_seconds] * _N_SIMULATED_JOBS, n_workers)
    return float(np.mean([stay.waited for stay in stays]))


def _tabulate_serving(figures: Figures, replica: dict[str, float]) -> str:
    answer_seconds = figures.answer_us / 1e6
    rate_each = _REPLICA_UTILISATION / answer_seconds
    n_simulated = _N_SIMULATED_REPLICAS
    latencies = simulate_replicas(n_simulated * rate_each, answer_seconds, n_simulated, _N_SIMULATED_REQUESTS, seed=0)
    p50, p99 = 1e3 * np.percentile(latencies, [50, 99])
    lines = [
        "| inferences/s, one by one | replicas, one core each | memory, GiB | latency, ms: median / 99th percentile | "
        "Gbit/s | cores if sent as arrays |",
        "|---|---|---|---|---|---|",
    ]
    for rate in _RATES:
        n_replicas = math.ceil(rate / rate_each)
        lines.append(
            f"| {rate:,} | {n_replicas:,} | {n_replicas * replica['memory_mib'] / 1024:.1f} | {p50:.2f} / {p99:.2f} | "
            f"{8 * rate * figures.exchange_bytes / 1e9:.2f} | "
            f"{rate / read_batch_rate() / _REPLICA_UTILISATION:.3f} |"
        )
    return "\n".join(lines)


def _tabulate_checks(checks: list[Check]) -> str:
    lines = ["| what | measured | simulated | deviation |", "|---|---|---|---|"]
    lines += [f"| {c.what} | {c.measured:,.1f} | {c.simulated:,.1f} | {c.deviation:+.0%} |" for c in checks]
    return "\n".join(lines)
