"""The client in a terminal: ``python -m grpo_client``, or ``grpo-client`` where the package is installed.

Exit status: 0, 1 if the server refused or a job failed, 2 if the command line cannot work, 130 after Ctrl-C.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grpo_client.answers import Resumed, Sweep
from grpo_client.answers.text import clean, describe_facts
from grpo_client.client import DEFAULT_URL, LATEST_JOB, LATEST_SWEEP, Client
from grpo_client.connection import read_url
from grpo_client.errors import GRPOError, InvalidArgument, JobFailed, ServerUnreachable
from grpo_client.files import EXPORT_FORMATS, VIDEO_FORMATS
from grpo_client.terminal import reports
from grpo_client.terminal.values import (
    UsageError,
    read_dimension,
    read_json,
    read_observation,
    read_seconds,
    read_settings,
)
from grpo_terminal import INTERRUPTED, Parser, end_well

_URL_VARIABLE, _KEY_VARIABLE = "GRPO_URL", "GRPO_API_KEY"
_REFUSED, _USAGE = 1, 2
# In the place of a job's id, and how the errors of such jobs begin.
_INTERRUPTED_JOBS, _INTERRUPTION = "interrupted", "interrupted by restart"
# How people called it, so that the commands it tells them of work as they are.
_PROGRAM = "python -m grpo_client" if Path(sys.argv[0]).parts[-2:] == ("grpo_client", "__main__.py") else "grpo-client"
# People at a terminal should learn within seconds that no server is there.
_MAX_RETRIES = 3
# Requests that the server tells people of, who have a command for each.
_REQUEST = re.compile(r"POST /training/([\w-]+)/(resume|stop)\b")
# Of every file that is saved.
_ITS_FOLDER = "; its folder is made if it is missing"


class _Reply(NamedTuple):
    """The outcome of a command.

    :param content: Output with ``--json``.
    :param text: Output without it.
    :param exit_status: Exit status of the program.
    """

    content: Any
    text: str
    exit_status: int = 0


_Command = Callable[[Client, argparse.Namespace], _Reply]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status.

    :param arguments: The words after the program's name; None takes them from the command line.
    """
    return end_well(lambda: _run(_make_parser().read(arguments)))


def _run(options: argparse.Namespace) -> int:
    try:
        with _open_client(options) as client:
            reply: _Reply = options.run(client, options)
    except (UsageError, InvalidArgument) as error:
        return _complain(str(error), _USAGE)
    except ServerUnreachable as error:
        return _complain(f"{error} For another address, use --url or {_URL_VARIABLE}.", _REFUSED)
    except (GRPOError, OSError) as error:
        return _complain(str(error), _REFUSED)
    except KeyboardInterrupt:
        return _complain(f"interrupted; submitted jobs go on, and {_PROGRAM} jobs lists them.", INTERRUPTED)
    text = json.dumps(reply.content, indent=2) if options.json else _name_commands(clean(reply.text))
    sys.stdout.write(f"{text}\n" if text else "")
    return reply.exit_status


def _open_client(options: argparse.Namespace) -> Client:
    url = options.url or os.environ.get(_URL_VARIABLE) or DEFAULT_URL
    try:
        read_url(url)
    except InvalidArgument as error:
        raise UsageError(f"--url {url} cannot be asked: {error}") from error
    try:
        return Client(url, options.api_key or os.environ.get(_KEY_VARIABLE), max_retries=_MAX_RETRIES)
    except InvalidArgument as error:
        raise UsageError(f"--api-key cannot be sent: {error}") from error


def _complain(text: str, exit_status: int) -> int:
    sys.stderr.write(f"{_PROGRAM}: {_name_commands(clean(text))}\n")
    return exit_status


def _name_commands(text: str) -> str:
    """Put commands in the place of the requests that do the same."""
    return _REQUEST.sub(rf"{_PROGRAM} \2 \1", text)


def _make_parser() -> Parser:
    parser = Parser(prog=_PROGRAM, description="Talk to a GRPO server.")
    commands = parser.add_commands({"list": "jobs", "ls": "jobs", "ps": "jobs", "kill": "stop", "cancel": "stop"})
    _add_job_commands(commands)
    _add_sweep_commands(commands)
    _add_model_commands(commands)
    search = _add(commands, "environments", _list_environments, "list the environments")
    search.add_argument("search", nargs="?", help="part of the names")
    environment = _add(commands, "environment", _show_environment, "describe an environment")
    environment.add_argument("env", help="its id")
    _add(commands, "rewards", _list_rewards, "list the reward functions")
    return parser


def _add(commands: Any, name: str, run: _Command, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--url", help=f"URL of the server; default: ${_URL_VARIABLE}, or else {DEFAULT_URL}")
    parser.add_argument("--api-key", help=f"its key; ${_KEY_VARIABLE} keeps it out of the list of processes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)
    return parser


def _add_job_commands(commands: Any) -> None:
    train = _add(commands, "train", _train, "start a job")
    train.add_argument("--env", help="id of a Gymnasium environment; default: the server's")
    train.add_argument("-n", "--total-timesteps", type=int, help="simulator steps")
    train.add_argument("--name", help="name of the model; default: generated")
    train.add_argument("--seed", type=int, help="seed, which makes the job repeatable")
    train.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="other fields of POST /train; values in JSON, or words",
    )
    train.add_argument("--watch", action="store_true", help="show a progress bar and the outcome")
    jobs = _add(commands, "jobs", _list_jobs, "list the jobs")
    jobs.add_argument("--status", help="only jobs with this status, such as running")
    jobs.add_argument("--limit", type=int, help="the most jobs to list")
    jobs.add_argument("--after", help="only jobs that come after the one with this id")
    jobs.add_argument("--sort", help="field to sort by, such as mean_reward; --sort=-mean_reward begins with the best")
    jobs.add_argument("--search", help="words, each in the job's names, id, environment, status, tags or note")
    jobs.add_argument("--env", help="only jobs in this environment")
    jobs.add_argument("--tag", help="only jobs with this tag")
    hidden = jobs.add_mutually_exclusive_group()
    hidden.add_argument("--hidden", action="store_true", default=None, help="only hidden jobs")
    hidden.add_argument("--shown", dest="hidden", action="store_false", help="only jobs that are not hidden")
    _add_label_command(commands)
    for name, run, text in (
        ("status", _show_status, "show the status of a job"),
        ("stop", _stop, "stop a job and keep its policy"),
        ("forget", _forget, "delete a job that has ended; its model stays"),
        ("resume", _resume, "let a stopped or failed job go on from its checkpoint"),
        ("metrics", _show_metrics, "print the metrics of a job as CSV"),
        ("curve", _save_curve, "save a learning curve as PNG"),
        ("wait", _wait, "wait silently for a job to end"),
        ("watch", _watch, "show a progress bar until a job ends"),
    ):
        parser = _add(commands, name, run, text)
        if run is _save_curve:
            parser.add_argument("path", help=f"file to save{_ITS_FOLDER}")
            parser.add_argument("--metric", help="a log key; default: the episode reward")
        if run is _forget:
            parser.add_argument("job", help=f"its id, or {LATEST_JOB}: the one submitted last")
        else:
            also = f"; {_INTERRUPTED_JOBS}: all whose server ended, but those of sweeps" if run is _resume else ""
            text = f"its id; default: the one submitted last{also}"
            parser.add_argument("job", nargs="?", default=LATEST_JOB, help=text)
        if run in (_wait, _watch):
            parser.add_argument("--timeout", type=read_seconds, metavar="SECONDS", help="give up then; the job goes on")


def _add_label_command(commands: Any) -> None:
    label = _add(commands, "label", _label, "write a name, tags or a note on a job, or hide it")
    # Not optional: after --tags, which takes all words that follow, it would be read as a tag of another job.
    label.add_argument("job", help=f"its id, or {LATEST_JOB}: the one submitted last; before --tags")
    label.add_argument("--name", help="what to call it; '' takes the name away")
    label.add_argument("--tags", nargs="*", metavar="TAG", help="words to find it by, in place of those it has")
    label.add_argument("--note", help="anything worth remembering; '' takes the note away")
    shown = label.add_mutually_exclusive_group()
    shown.add_argument("--hide", dest="hidden", action="store_true", default=None, help="leave it out of the dashboard")
    shown.add_argument("--show", dest="hidden", action="store_false", help="take it into the dashboard again")


def _add_sweep_commands(commands: Any) -> None:
    text = "try several settings"
    sweep = commands.add_parser("sweep", help=text, description=f"{text.capitalize()}.")
    actions = sweep.add_commands()
    start = _add(actions, "start", _start_sweep, "start a sweep")
    start.add_argument(
        "--try",
        nargs="+",
        action="extend",
        default=[],
        dest="space",
        metavar="KEY=VALUES",
        help="fields of POST /train and what to try; without any, --seeds alone: 0.001,0.003 or uniform(0.9,1) or "
        "loguniform(1e-4,1e-2) or "
        "integer(32,256,32), the last number being a step; or JSON",
    )
    start.add_argument("--env", help="id of a Gymnasium environment; default: the server's")
    start.add_argument("-n", "--total-timesteps", type=int, help="simulator steps of each job")
    start.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="other fields of all jobs"
    )
    start.add_argument("--name", help="name of the sweep and beginning of its models' names; default: generated")
    start.add_argument("--method", help="grid, random or halving; default: grid")
    start.add_argument("--trials", type=int, dest="n_trials", help="number of settings to draw")
    start.add_argument("--seeds", type=int, nargs="+", help="train each setting with each of these")
    start.add_argument("--seed", type=int, help="seed of what is drawn")
    start.add_argument("--max-active", type=int, help="jobs that run or wait at a time")
    start.add_argument("--budget", type=int, dest="budget_timesteps", help="simulator steps of all jobs together")
    start.add_argument("--keep", help="best or all: which models are kept; default: best")
    start.add_argument("--watch", action="store_true", help="wait for the end, and show the table")
    listed = _add(actions, "list", _list_sweeps, "list the sweeps")
    listed.add_argument("--limit", type=int, help="the most sweeps to list; default: 50")
    listed.add_argument("--after", help="only sweeps before the one with this id")
    for name, run, text in (
        ("status", _show_sweep, "show a sweep and its table of settings"),
        ("wait", _wait_for_sweep, "wait for a sweep to end, and show its table"),
        ("stop", _change_sweep, "stop all jobs of a sweep; its best model is kept"),
        ("resume", _change_sweep, "go on with a stopped or interrupted sweep"),
        ("delete", _change_sweep, "forget a sweep; its jobs and models stay"),
    ):
        parser = _add(actions, name, run, text)
        if name == "delete":
            parser.add_argument("sweep", help="its id")
        else:
            parser.add_argument("sweep", nargs="?", default=LATEST_SWEEP, help="its id; default: the newest one")
        parser.set_defaults(action=name)
        if run is _wait_for_sweep:
            parser.add_argument(
                "--timeout", type=read_seconds, metavar="SECONDS", help="give up then; the sweep goes on"
            )


def _add_model_commands(commands: Any) -> None:
    _add(commands, "models", _list_models, "list the models")
    predict = _add_for_model(commands, "predict", _predict, "ask a policy for an action")
    predict.add_argument(
        "observation",
        nargs="+",
        help="numbers, such as 0.1 0 0.05 0, also as NumPy prints them, or JSON: '[0.1, 0, 0.05, 0]'",
    )
    predict.add_argument("--masks", help="JSON: which actions are allowed")
    _add_for_model(commands, "card", _show_card, "show the card of a model")
    evaluate = _add_for_model(commands, "evaluate", _evaluate, "compare a policy with random actions")
    evaluate.add_argument("-n", "--episodes", type=int, default=20, help="number of episodes (%(default)s)")
    video = _add_for_model(commands, "video", _film, "film an episode")
    video.add_argument("path", help=f"file to save, ending in .{' or .'.join(VIDEO_FORMATS)}{_ITS_FOLDER}")
    video.add_argument("--max-steps", type=int, default=500, help="longest film, in steps (%(default)s)")
    for playing in (evaluate, video):
        playing.add_argument("--seed", type=int, default=0, help="seed of the first episode (%(default)s)")
    for acting in (predict, evaluate, video):
        acting.add_argument(
            "--stochastic", action="store_true", help="sample actions instead of taking the most likely"
        )
    download = _add_for_model(commands, "download", _download, "save a model file")
    download.add_argument("path", nargs="?", help=f"file to save, or folder for MODEL.zip; default: here{_ITS_FOLDER}")
    _add_for_model(commands, "versions", _list_versions, "list the versions of a model")
    alias = _add_for_model(commands, "alias", _set_alias, "point an alias at a version of a model")
    alias.add_argument("alias", help="such as prod: MODEL@prod then means that version")
    alias.add_argument("--delete", action="store_true", help="delete the alias")
    rollback = _add_for_model(commands, "rollback", _roll_back, "make an earlier version the newest again")
    for choosing, default in ((alias, "the newest"), (rollback, "the one before the newest")):
        choosing.add_argument("--version", type=int, help=f"its number; default: {default}")
    export = _add_for_model(commands, "export", _export, "save a policy as ONNX or TorchScript")
    export.add_argument("path", help=f"file to save, ending in {' or '.join(EXPORT_FORMATS)}{_ITS_FOLDER}")
    export.add_argument("--masks", action="store_true", help="have it take action masks beside every observation")
    upload = _add_for_model(commands, "upload", _upload, "put a model file on the server")
    upload.add_argument("path", nargs="?", type=Path, help="the file; default: MODEL.zip")
    upload.add_argument("--name", help=argparse.SUPPRESS)  # as it was written before MODEL came first
    upload.add_argument("--overwrite", action="store_true", help="replace a model of that name")
    _add_for_model(commands, "delete", _delete, "delete a model")


def _add_for_model(commands: Any, name: str, run: _Command, text: str) -> argparse.ArgumentParser:
    parser = _add(commands, name, run, text)
    parser.add_argument("model", help="name of a model")
    return parser


def _train(client: Client, options: argparse.Namespace) -> _Reply:
    named = {
        "env_name": options.env,
        "total_timesteps": options.total_timesteps,
        "model_name": options.name,
        "seed": options.seed,
    }
    settings = {name: value for name, value in named.items() if value is not None}
    job = client.train(**settings, **read_settings(options.set, settings))
    if options.watch:
        return _follow(client, job.job_id, None, progress=not options.json)
    text = f"submitted job {job.job_id}; watch it with: {_PROGRAM} watch {job.job_id}"
    return _Reply({"job_id": job.job_id, "config": job.config}, text)


def _follow(client: Client, job_id: str, timeout_seconds: float | None, progress: bool) -> _Reply:
    """Wait for a job to end, and report its final status."""
    try:
        status = client.wait(job_id, timeout_seconds, progress=progress)
    except JobFailed as failure:
        status = failure.status
    except KeyboardInterrupt:
        _complain(f"the job goes on; {_PROGRAM} watch {job_id} watches it again, {_PROGRAM} stop {job_id} stops it.", 0)
        return _Reply({"job_id": job_id}, "", INTERRUPTED)
    exit_status = _REFUSED if status.status == "failed" else 0
    return _Reply(status.to_json(), str(status), exit_status)


def _watch(client: Client, options: argparse.Namespace) -> _Reply:
    return _follow(client, client.job(options.job).job_id, options.timeout, progress=not options.json)


def _wait(client: Client, options: argparse.Namespace) -> _Reply:
    return _follow(client, client.job(options.job).job_id, options.timeout, progress=False)


def _list_jobs(client: Client, options: argparse.Namespace) -> _Reply:
    jobs = client.jobs(
        options.status,
        options.limit,
        options.after,
        sort=options.sort,
        search=options.search,
        env_name=options.env,
        tag=options.tag,
        hidden=options.hidden,
    )
    return _Reply([job.to_json() for job in jobs], reports.list_jobs(jobs))


def _show_status(client: Client, options: argparse.Namespace) -> _Reply:
    status = client.status(options.job)
    return _Reply(status.to_json(), str(status))


def _stop(client: Client, options: argparse.Namespace) -> _Reply:
    stopped = client.stop(options.job)
    return _Reply(stopped.to_json(), f"{stopped.message}: {stopped.job_id}")


def _forget(client: Client, options: argparse.Namespace) -> _Reply:
    forgotten = client.forget(options.job)
    return _Reply(forgotten.to_json(), f"{forgotten.message}: {forgotten.job_id}")


def _label(client: Client, options: argparse.Namespace) -> _Reply:
    given = {"display_name": options.name, "tags": options.tags, "note": options.note, "hidden": options.hidden}
    labels = {name: value for name, value in given.items() if value is not None}
    if not labels:
        raise UsageError("label needs something to write: --name, --tags, --note, --hide or --show.")
    if labels.get("display_name") == "":
        labels["display_name"] = None
    job = client.label(options.job, **labels)
    return _Reply(job.to_json(), reports.describe_labels(job))


def _resume(client: Client, options: argparse.Namespace) -> _Reply:
    if options.job == _INTERRUPTED_JOBS:
        return _resume_interrupted(client)
    resumed = client.resume(options.job)
    return _Reply(resumed.to_json(), _describe_resumed(resumed))


def _describe_resumed(resumed: Resumed) -> str:
    return f"{resumed.message} from step {resumed.timesteps:,}: {resumed.job_id}"


def _resume_interrupted(client: Client) -> _Reply:
    """Resume every job that the server's end interrupted, in the order they were made; name sweeps with such jobs."""
    answers, lines, sweep_ids, exit_status = list[Any](), list[str](), dict[str, None](), 0
    for job in client.jobs("failed"):
        try:
            status = client.status(job.job_id)
            if status.status != "failed" or not (status.error_message or "").startswith(_INTERRUPTION):
                continue
            if status.sweep_id is not None:
                sweep_ids[status.sweep_id] = None
                continue
            answer = client.resume(job.job_id)
        except ServerUnreachable:
            raise
        except GRPOError as error:  # such as a full queue; others may still go on
            answers.append({"job_id": job.job_id, "error": str(error)})
            lines.append(f"job {job.job_id} is not resumed: {error}")
            exit_status = _REFUSED
            continue
        answers.append(answer.to_json())
        lines.append(_describe_resumed(answer))
    answers += [{"sweep_id": sweep_id, "error": "its jobs go on with the sweep"} for sweep_id in sweep_ids]
    lines += [f"jobs of a sweep go on with: {_PROGRAM} sweep resume {sweep_id}" for sweep_id in sweep_ids]
    return _Reply(answers, "\n".join(lines) or "no job is interrupted.", exit_status)


def _show_metrics(client: Client, options: argparse.Namespace) -> _Reply:
    if options.json:
        return _Reply(client.metrics(options.job).to_json(), "")
    return _Reply(None, client.metrics_csv(options.job).rstrip())


def _save_curve(client: Client, options: argparse.Namespace) -> _Reply:
    return _report_saved(client.curve(options.job, options.path, options.metric))


def _report_saved(path: Path) -> _Reply:
    return _Reply({"path": str(path)}, f"saved {path}")


def _start_sweep(client: Client, options: argparse.Namespace) -> _Reply:
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
        return _follow_sweep(client, started.sweep_id, None)
    size = f"{_count(started.n_settings, 'setting')}, {_count(started.n_jobs, 'job')}"
    text = f"submitted sweep {started.name}: {size}; see its table with: {_PROGRAM} sweep status {started.sweep_id}"
    return _Reply(started.to_json(), text)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _report_sweep(sweep: Sweep) -> _Reply:
    return _Reply(sweep.to_json(), str(sweep))


def _follow_sweep(client: Client, sweep_id: str, timeout_seconds: float | None) -> _Reply:
    """Wait for a sweep to end, and report its table."""
    try:
        sweep = client.wait_for_sweep(sweep_id, timeout_seconds)
    except KeyboardInterrupt:
        again, stop = f"{_PROGRAM} sweep wait {sweep_id}", f"{_PROGRAM} sweep stop {sweep_id}"
        _complain(f"the sweep goes on; {again} waits for it again, {stop} stops it.", 0)
        return _Reply({"sweep_id": sweep_id}, "", INTERRUPTED)
    return _report_sweep(sweep)._replace(exit_status=_REFUSED if sweep.counts.get("failed") else 0)


def _list_sweeps(client: Client, options: argparse.Namespace) -> _Reply:
    sweeps = client.sweeps(options.limit, options.after)
    return _Reply([sweep.to_json() for sweep in sweeps], reports.list_sweeps(sweeps))


def _show_sweep(client: Client, options: argparse.Namespace) -> _Reply:
    return _report_sweep(client.sweep(options.sweep))


def _wait_for_sweep(client: Client, options: argparse.Namespace) -> _Reply:
    return _follow_sweep(client, client.sweep(options.sweep).sweep_id, options.timeout)


def _change_sweep(client: Client, options: argparse.Namespace) -> _Reply:
    change = {"stop": client.stop_sweep, "resume": client.resume_sweep, "delete": client.delete_sweep}
    changed = change[options.action](options.sweep)
    return _Reply(changed.to_json(), f"{changed.message}: {changed.name}, {changed.sweep_id}")


def _predict(client: Client, options: argparse.Namespace) -> _Reply:
    observation, masks = read_observation(options.observation), read_json("--masks", options.masks)
    prediction = client.predict(options.model, observation, not options.stochastic, masks)
    return _Reply(prediction.to_json(), reports.describe_prediction(prediction))


def _list_models(client: Client, options: argparse.Namespace) -> _Reply:
    models = client.models()
    return _Reply([model.to_json() for model in models], reports.list_models(models))


def _show_card(client: Client, options: argparse.Namespace) -> _Reply:
    card = client.model(options.model)
    return _Reply(card.to_json(), describe_facts(card.to_json()))


def _evaluate(client: Client, options: argparse.Namespace) -> _Reply:
    comparison = client.evaluate(options.model, options.episodes, options.seed, not options.stochastic)
    return _Reply(comparison.to_json(), reports.describe_comparison(comparison))


def _film(client: Client, options: argparse.Namespace) -> _Reply:
    video = client.video(options.model, options.path, options.seed, not options.stochastic, options.max_steps)
    return _Reply(video.to_json(), f"saved {video.path}: {video.n_steps} steps, reward {video.reward}")


def _download(client: Client, options: argparse.Namespace) -> _Reply:
    return _report_saved(client.download(options.model, options.path))


def _export(client: Client, options: argparse.Namespace) -> _Reply:
    return _report_saved(client.export(options.model, options.path, options.masks))


def _upload(client: Client, options: argparse.Namespace) -> _Reply:
    if options.name is not None and options.path is not None:
        raise UsageError("MODEL and --name exclude each other; leave --name out, and write MODEL FILE.")
    name, path = _name_upload(options.model, options.path)
    if not path.is_file():
        raise UsageError(
            f"{path} is not a file; name one that GRPO.save or download wrote: {_PROGRAM} upload MODEL FILE."
        )
    card = client.upload(options.name or name, path, options.overwrite)
    return _Reply(card.to_json(), f"uploaded {card.name}: {card.n_bytes} bytes, sha256 {card.sha256}")


def _name_upload(model: str, path: Path | None) -> tuple[str, Path]:
    """Return the name and the file of an upload; a file alone gives the model its name."""
    if path is not None:
        return model, path
    if Path(model).suffix or Path(model).is_file():
        return Path(model).stem, Path(model)
    return model, Path(f"{model}.zip")


def _list_versions(client: Client, options: argparse.Namespace) -> _Reply:
    listed = client.versions(options.model)
    return _Reply(listed.to_json(), reports.list_versions(listed))


def _set_alias(client: Client, options: argparse.Namespace) -> _Reply:
    if options.delete:
        if options.version is not None:
            raise UsageError("--delete and --version exclude each other; leave one out.")
        deleted = client.delete_alias(options.model, options.alias)
        return _Reply(deleted.to_json(), f"deleted {deleted.model_name}@{deleted.alias}")
    alias = client.set_alias(options.model, options.alias, options.version)
    before = "" if alias.previous_version is None else f", before version {alias.previous_version}"
    return _Reply(alias.to_json(), f"{alias.model_name}@{alias.alias} is version {alias.version}{before}")


def _roll_back(client: Client, options: argparse.Namespace) -> _Reply:
    done = client.rollback(options.model, options.version)
    return _Reply(done.to_json(), f"{done.message}, as version {done.version}: {done.model_name}")


def _delete(client: Client, options: argparse.Namespace) -> _Reply:
    deleted = client.delete(options.model)
    return _Reply(deleted.to_json(), f"{deleted.message}: {deleted.model_name}")


def _list_environments(client: Client, options: argparse.Namespace) -> _Reply:
    environments = client.environments(options.search)
    return _Reply([one.to_json() for one in environments], reports.list_environments(environments))


def _show_environment(client: Client, options: argparse.Namespace) -> _Reply:
    environment = client.environment(options.env).to_json()
    return _Reply(environment, describe_facts(environment))


def _list_rewards(client: Client, options: argparse.Namespace) -> _Reply:
    rewards = client.reward_functions()
    return _Reply([reward.to_json() for reward in rewards], reports.list_rewards(rewards))
