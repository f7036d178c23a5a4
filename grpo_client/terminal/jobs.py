"""The commands of jobs."""

import argparse
from typing import Any

from grpo_client.answers.jobs import Resumed
from grpo_client.client import LATEST_JOB, Client
from grpo_client.errors import GRPOError, JobFailed, ServerUnreachable
from grpo_client.terminal import reports
from grpo_client.terminal.command import (
    PROGRAM,
    REFUSED,
    SAVED_HOW,
    Command,
    Reply,
    add_command,
    complain,
    report_saved,
)
from grpo_client.terminal.values import read_seconds, read_settings
from grpo_terminal import INTERRUPTED, UsageError

# In the place of a job's id.
_INTERRUPTED_JOBS = "interrupted"
_JOB = f"its id, or {LATEST_JOB}: the one submitted last"


def add_job_commands(commands: Any) -> None:
    """Add the commands of jobs."""
    train = add_command(commands, "train", _train, "start a job")
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
    jobs = add_command(commands, "jobs", _list_jobs, "list the jobs")
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
    _add_for_job(commands, "status", _show_status, "show the status of a job")
    _add_for_job(commands, "stop", _stop, "stop a job and keep its policy")
    forget = add_command(commands, "forget", _forget, "delete a job that has ended; its model stays")
    forget.add_argument("job", help=_JOB)
    also = f"; {_INTERRUPTED_JOBS}: all jobs that the end of their server interrupted, except those of sweeps"
    _add_for_job(commands, "resume", _resume, "let a stopped or failed job go on from its checkpoint", also)
    _add_for_job(commands, "metrics", _show_metrics, "print the metrics of a job as CSV")
    curve = add_command(commands, "curve", _save_curve, "save a learning curve as PNG")
    curve.add_argument("path", help=f"file to save{SAVED_HOW}")
    curve.add_argument("--metric", help="a log key; default: the episode reward")
    _add_job(curve)
    wait = _add_for_job(commands, "wait", _wait, "wait silently for a job to end")
    watch = _add_for_job(commands, "watch", _watch, "show a progress bar until a job ends")
    for waiting in (wait, watch):
        waiting.add_argument("--timeout", type=read_seconds, metavar="SECONDS", help="give up then; the job goes on")


def _add_for_job(commands: Any, name: str, run: Command, text: str, also: str = "") -> argparse.ArgumentParser:
    parser = add_command(commands, name, run, text)
    _add_job(parser, also)
    return parser


def _add_job(parser: argparse.ArgumentParser, also: str = "") -> None:
    parser.add_argument("job", nargs="?", default=LATEST_JOB, help=f"its id; default: the one submitted last{also}")


def _add_label_command(commands: Any) -> None:
    label = add_command(commands, "label", _label, "write a name, tags or a note on a job, or hide it")
    # Not optional: after --tags, which takes all words that follow, it would be read as a tag of another job.
    label.add_argument("job", help=f"{_JOB}; before --tags")
    label.add_argument("--name", help="what to call it; '' takes the name away")
    label.add_argument(
        "--tags",
        nargs="*",
        action="extend",
        metavar="TAG",
        help="words to find it by, in place of those it has",
    )
    label.add_argument("--note", help="anything worth remembering; '' takes the note away")
    shown = label.add_mutually_exclusive_group()
    shown.add_argument("--hide", dest="hidden", action="store_true", default=None, help="leave it out of the dashboard")
    shown.add_argument("--show", dest="hidden", action="store_false", help="take it into the dashboard again")


def _train(client: Client, options: argparse.Namespace) -> Reply:
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
    text = f"submitted job {job.job_id}; watch it with: {PROGRAM} watch {job.job_id}"
    return Reply({"job_id": job.job_id, "config": job.config}, text)


def _follow(client: Client, job_id: str, timeout_seconds: float | None, progress: bool) -> Reply:
    """Wait for a job to end, and report its final status."""
    try:
        status, exit_status = client.wait(job_id, timeout_seconds, progress=progress), 0
    except JobFailed as failure:
        status, exit_status = failure.status, REFUSED
    except KeyboardInterrupt:
        complain(f"the job goes on; {PROGRAM} watch {job_id} watches it again, {PROGRAM} stop {job_id} stops it.", 0)
        return Reply({"job_id": job_id}, "", INTERRUPTED)
    return Reply(status.to_json(), str(status), exit_status)


def _watch(client: Client, options: argparse.Namespace) -> Reply:
    return _follow(client, client.job(options.job).job_id, options.timeout, progress=not options.json)


def _wait(client: Client, options: argparse.Namespace) -> Reply:
    return _follow(client, client.job(options.job).job_id, options.timeout, progress=False)


def _list_jobs(client: Client, options: argparse.Namespace) -> Reply:
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
    return Reply([job.to_json() for job in jobs], reports.list_jobs(jobs))


def _show_status(client: Client, options: argparse.Namespace) -> Reply:
    status = client.status(options.job)
    return Reply(status.to_json(), str(status))


def _stop(client: Client, options: argparse.Namespace) -> Reply:
    stopped = client.stop(options.job)
    return Reply(stopped.to_json(), f"{stopped.message}: {stopped.job_id}")


def _forget(client: Client, options: argparse.Namespace) -> Reply:
    forgotten = client.forget(options.job)
    return Reply(forgotten.to_json(), f"{forgotten.message}: {forgotten.job_id}")


def _label(client: Client, options: argparse.Namespace) -> Reply:
    given = {"display_name": options.name, "tags": options.tags, "note": options.note, "hidden": options.hidden}
    labels = {name: value for name, value in given.items() if value is not None}
    if not labels:
        raise UsageError("label needs something to write: --name, --tags, --note, --hide or --show.")
    if labels.get("display_name") == "":
        labels["display_name"] = None
    job = client.label(options.job, **labels)
    return Reply(job.to_json(), reports.describe_labels(job))


def _resume(client: Client, options: argparse.Namespace) -> Reply:
    if options.job == _INTERRUPTED_JOBS:
        return _resume_interrupted(client)
    resumed = client.resume(options.job)
    return Reply(resumed.to_json(), _describe_resumed(resumed))


def _describe_resumed(resumed: Resumed) -> str:
    return f"{resumed.message} from step {resumed.timesteps:,}: {resumed.job_id}"


def _resume_interrupted(client: Client) -> Reply:
    """Resume every job that the server's end interrupted, in the order they were made; name sweeps with such jobs."""
    answers, lines, sweep_ids, exit_status = list[Any](), list[str](), dict[str, None](), 0
    ended = [job for status in ("failed", "stopped") for job in client.jobs(status)]
    for job in sorted(ended, key=lambda job: job.created_at):
        try:
            status = client.status(job.job_id)
            if not (status.is_final and status.is_interrupted):
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
            exit_status = REFUSED
            continue
        answers.append(answer.to_json())
        lines.append(_describe_resumed(answer))
    answers += [{"sweep_id": sweep_id, "error": "its jobs go on with the sweep"} for sweep_id in sweep_ids]
    lines += [f"jobs of a sweep go on with: {PROGRAM} sweep resume {sweep_id}" for sweep_id in sweep_ids]
    return Reply(answers, "\n".join(lines) or "no job is interrupted.", exit_status)


def _show_metrics(client: Client, options: argparse.Namespace) -> Reply:
    if options.json:
        return Reply(client.metrics(options.job).to_json(), "")
    return Reply(None, client.metrics_csv(options.job).rstrip())


def _save_curve(client: Client, options: argparse.Namespace) -> Reply:
    return report_saved(client.curve(options.job, options.path, options.metric))
