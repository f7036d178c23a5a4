"""The commands of sweeps."""

import argparse
from typing import Any

from grpo_client.answers.sweeps import Sweep, SweepChanged
from grpo_client.client import LATEST_SWEEP, Client
from grpo_client.terminal import reports
from grpo_client.terminal.command import PROGRAM, REFUSED, Command, Reply, add_command, complain
from grpo_client.terminal.values import read_dimension, read_seconds, read_settings
from grpo_terminal import INTERRUPTED, UsageError


def add_sweep_commands(commands: Any) -> None:
    """Add the command ``sweep``, which has commands of its own."""
    text = "try several settings"
    sweep = commands.add_parser("sweep", help=text, description=f"{text.capitalize()}.")
    actions = sweep.add_commands()
    start = add_command(actions, "start", _start, "start a sweep")
    start.add_argument(
        "--try",
        nargs="+",
        action="extend",
        default=[],
        dest="space",
        metavar="KEY=VALUES",
        help="fields of POST /train and what to try; without any, --seeds alone: 0.001,0.003 or uniform(0.9,1) or "
        "loguniform(1e-4,1e-2) or integer(32,256,32), the last number being a step; or JSON",
    )
    start.add_argument("--env", help="id of a Gymnasium environment; default: the server's")
    start.add_argument("-n", "--total-timesteps", type=int, help="simulator steps of each job")
    start.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="other fields of all jobs"
    )
    start.add_argument("--name", help="name of the sweep and beginning of its models' names; default: generated")
    start.add_argument("--method", help="grid, random or halving; default: grid")
    start.add_argument("--trials", type=int, dest="n_trials", help="number of settings to draw")
    start.add_argument("--seeds", type=int, nargs="+", action="extend", help="train each setting with each of these")
    start.add_argument("--seed", type=int, help="seed of what is drawn")
    start.add_argument("--max-active", type=int, help="jobs that run or wait at a time")
    start.add_argument("--budget", type=int, dest="budget_timesteps", help="simulator steps of all jobs together")
    start.add_argument("--keep", help="best or all: which models are kept; default: best")
    start.add_argument("--watch", action="store_true", help="wait for the end, and show the table")
    listed = add_command(actions, "list", _list, "list the sweeps")
    listed.add_argument("--limit", type=int, help="the most sweeps to list; default: 50")
    listed.add_argument("--after", help="only sweeps before the one with this id")
    _add_for_sweep(actions, "status", _show, "show a sweep and its table of settings")
    wait = _add_for_sweep(actions, "wait", _wait, "wait for a sweep to end, and show its table")
    wait.add_argument("--timeout", type=read_seconds, metavar="SECONDS", help="give up then; the sweep goes on")
    _add_for_sweep(actions, "stop", _stop, "stop all jobs of a sweep; its best model is kept")
    _add_for_sweep(actions, "resume", _resume, "go on with a stopped or interrupted sweep")
    delete = add_command(actions, "delete", _delete, "forget a sweep; its jobs and models stay")
    delete.add_argument("sweep", help="its id")


def _add_for_sweep(actions: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    parser = add_command(actions, name, run, text)
    parser.add_argument("sweep", nargs="?", default=LATEST_SWEEP, help="its id; default: the newest one")
    return parser


def _start(client: Client, options: argparse.Namespace) -> Reply:
    named = {"env_name": options.env, "total_timesteps": options.total_timesteps}
    base = {name: value for name, value in named.items() if value is not None}
    names = ("name", "method", "n_trials", "seeds", "seed", "max_active", "budget_timesteps", "keep")
    fields = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    space: dict[str, Any] = {}
    for name, values in map(read_dimension, options.space):
        if name in space:
            raise UsageError(f"--try names {name} twice; write all its values after one, such as {name}=0.001,0.003.")
        space[name] = values
    started = client.start_sweep(space, base={**base, **read_settings(options.set, base)}, **fields)
    if options.watch:
        return _follow(client, started.sweep_id, None)
    size = f"{_count(started.n_settings, 'setting')}, {_count(started.n_jobs, 'job')}"
    text = f"submitted sweep {started.name}: {size}; see its table with: {PROGRAM} sweep status {started.sweep_id}"
    return Reply(started.to_json(), text)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _report(sweep: Sweep) -> Reply:
    return Reply(sweep.to_json(), str(sweep))


def _follow(client: Client, sweep_id: str, timeout_seconds: float | None) -> Reply:
    """Wait for a sweep to end, and report its table."""
    try:
        sweep = client.wait_for_sweep(sweep_id, timeout_seconds)
    except KeyboardInterrupt:
        again, stop = f"{PROGRAM} sweep wait {sweep_id}", f"{PROGRAM} sweep stop {sweep_id}"
        complain(f"the sweep goes on; {again} waits for it again, {stop} stops it.", 0)
        return Reply({"sweep_id": sweep_id}, "", INTERRUPTED)
    return _report(sweep)._replace(exit_status=REFUSED if sweep.counts.get("failed") else 0)


def _list(client: Client, options: argparse.Namespace) -> Reply:
    sweeps = client.sweeps(options.limit, options.after)
    return Reply([sweep.to_json() for sweep in sweeps], reports.list_sweeps(sweeps))


def _show(client: Client, options: argparse.Namespace) -> Reply:
    return _report(client.sweep(options.sweep))


def _wait(client: Client, options: argparse.Namespace) -> Reply:
    return _follow(client, client.sweep(options.sweep).sweep_id, options.timeout)


def _stop(client: Client, options: argparse.Namespace) -> Reply:
    return _report_change(client.stop_sweep(options.sweep))


def _resume(client: Client, options: argparse.Namespace) -> Reply:
    return _report_change(client.resume_sweep(options.sweep))


def _delete(client: Client, options: argparse.Namespace) -> Reply:
    return _report_change(client.delete_sweep(options.sweep))


def _report_change(changed: SweepChanged) -> Reply:
    return Reply(changed.to_json(), f"{changed.message}: {changed.name}, {changed.sweep_id}")
