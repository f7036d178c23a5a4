"""The client that blocks; generated from ``async_client.py`` by ``make format``: edit that file."""

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx2

from grpo_client.answers.environments import Environment, EnvironmentSummary, RewardFunction
from grpo_client.answers.evaluations import Comparison
from grpo_client.answers.events import Events, JobEvent, make_last_event, read_event
from grpo_client.answers.jobs import Forgotten, JobSummary, MetricHistory, Resumed, Stopped, Submission, TrainingStatus
from grpo_client.answers.models import Alias, Deleted, ModelCard, ModelSummary, ModelVersions, RolledBack, Video
from grpo_client.answers.predictions import ItemError, Prediction, parse_item
from grpo_client.answers.reading import Answer, check_type, import_numpy, read_array, read_json, read_list, to_plain
from grpo_client.answers.server import Health, ServerInfo
from grpo_client.answers.sweeps import Sweep, SweepChanged, SweepStarted, SweepSummary
from grpo_client.connection import explain_proxy, explain_request, make_options, quote_name
from grpo_client.errors import Busy, JobFailed, ServerUnreachable, check_response, make_error
from grpo_client.files import (
    FilePath,
    get_export_format,
    get_video_format,
    place_model,
    read_file,
    read_target,
    save_export,
    save_file,
    save_model,
    save_video,
)
from grpo_client.listeners import tell
from grpo_client.progress_bar import make_listener
from grpo_client.retries import Attempts, Deadline, Retries

if TYPE_CHECKING:
    import numpy.typing as npt

A = TypeVar("A", bound=Answer)

DEFAULT_URL = "http://localhost:8000"
DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_RETRIES = 5
LATEST_JOB = LATEST_SWEEP = "latest"

# The server makes an environment before it answers, or plays whole episodes, and may let others go first.
_WORK_TIMEOUT_SECONDS = 600.0
# The server sends a comment every 15 s; a stream that is silent for three times as long is dead.
_SILENCE_SECONDS = 45.0
# How long a stream may be silent before a deadline is checked.
_DEADLINE_CHECK_SECONDS = 2.0
# How often a sweep is looked at that is waited for.
_SWEEP_SECONDS = 1.0
_ARRAY_TYPE = "application/octet-stream"


def _leave_out_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class Client:
    """Train on a GRPO server, and ask its policies for actions.

    ``Client`` blocks, and several threads may share one. ``AsyncClient`` has the same methods, to be awaited on asyncio
    or trio. Both send a request again while the server is busy (429, 503), after the pause that it asks for, and both
    repeat a ``GET`` whose connection was lost. All other refusals raise ``ApiError``.

    Whatever saves a file makes its folder if that is missing.

    :param base_url: URL of the server.
    :param api_key: The server's ``GRPO_API_KEY``; None if it has none.
    :param timeout_seconds: Time allowed to connect, to wait for an answer and between its parts, above 0.
    :param max_retries: How often a request is sent again, at least 0.
    :raises InvalidArgument: If an argument is outside its range.
    :raises GRPOError: If the environment names a proxy that cannot be used. A server on this machine is asked directly.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_retries: int = DEFAULT_RETRIES,
    ) -> None:
        self._retries = Retries(max_retries)
        options = make_options(base_url, api_key, timeout_seconds)
        with explain_proxy():
            self._http = httpx2.Client(**options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Send a request, and send it again where that may help.

        :raises InvalidArgument: If it cannot be written.
        :raises ServerUnreachable: If no answer came.
        :raises ApiError: If the server refused.
        """
        n_failed = 0
        while True:
            outcome = self._send(method, path, **options)
            pause_seconds = self._retries.find_pause_seconds(method, outcome, n_failed)
            if pause_seconds is None:
                return check_response(outcome)
            n_failed += 1
            time.sleep(pause_seconds)

    def _send(self, method: str, path: str, **options: Any) -> httpx2.Response | httpx2.RequestError:
        """Send a request once, and return its answer, or what kept that from coming.

        :param options: Arguments of httpx2's ``request``.
        :raises InvalidArgument: If it cannot be written.
        """
        if "json" in options:
            options["json"] = to_plain(options["json"])
        try:
            with explain_request():
                return self._http.request(method, path, **options)
        except httpx2.RequestError as error:
            return error

    def _ask(self, kind: type[A], method: str, path: str, **options: Any) -> A:
        return kind.parse(read_json(self._request(method, path, **options)))

    def _list(self, kind: type[A], key: str, path: str, **query: Any) -> list[A]:
        # Without a query, None keeps the one that stands in the URL.
        response = self._request("GET", path, params=_leave_out_none(**query) or None)
        return [kind.parse(item) for item in read_list(response, key)]

    def server_info(self) -> ServerInfo:
        """Get the server's version and endpoints."""
        return self._ask(ServerInfo, "GET", "/")

    def health(self) -> Health:
        """Check that the server is alive, and count its jobs and models."""
        return self._ask(Health, "GET", "/health")

    def train(self, /, **settings: Any) -> "Job":
        """Start a job.

        :param settings: Fields of ``POST /train``, such as ``env_name``, ``total_timesteps``, ``model_name``.
        """
        submission = self._ask(Submission, "POST", "/train", json=settings, timeout=_WORK_TIMEOUT_SECONDS)
        return Job(self, submission.job_id, submission.config)

    def job(self, job_id: str = LATEST_JOB) -> "Job":
        """Find a job that was started before; by default the one submitted last.

        :raises NotFound: If there is none.
        """
        status = self.status(job_id)
        return Job(self, status.job_id, status.config)

    def jobs(
        self,
        status: str | None = None,
        limit: int | None = None,
        after: str | None = None,
        *,
        sort: str | None = None,
        search: str | None = None,
        env_name: str | None = None,
        tag: str | None = None,
        hidden: bool | None = None,
    ) -> list[JobSummary]:
        """List the jobs, oldest first unless sorted otherwise.

        :param status: Only jobs with this status, such as ``"running"``.
        :param limit: The most jobs to list.
        :param after: Only jobs that come after the one with this id.
        :param sort: A field to sort by, such as ``"mean_reward"``; a minus before it turns the order around.
        :param search: Words that all have to be in the job's names, id, environment, status, tags or note.
        :param env_name: Only jobs in this environment.
        :param tag: Only jobs with this tag.
        :param hidden: Only hidden jobs, or only the others; None lists both.
        """
        query = {"status": status, "limit": limit, "after": after, "sort": sort, "search": search}
        query |= {"env_name": env_name, "tag": tag, "hidden": hidden}
        return self._list(JobSummary, "jobs", "/training/jobs", **query)

    def label(self, /, job_id: str, **labels: Any) -> JobSummary:
        """Write something on a job; what is left out stays as it is, and None takes it away.

        :param labels: ``display_name``, ``tags``, ``note`` and ``hidden``.
        """
        path = f"/training/{quote_name(job_id)}"
        return self._ask(JobSummary, "PATCH", path, json=labels)

    def forget(self, job_id: str) -> Forgotten:
        """Delete a job that has ended; its model stays."""
        return self._ask(Forgotten, "DELETE", f"/training/{quote_name(job_id)}")

    def status(self, job_id: str) -> TrainingStatus:
        """Get the status of a job; ``"latest"`` is the one submitted last, here and below."""
        return self._ask(TrainingStatus, "GET", f"/training/{quote_name(job_id)}/status")

    def stop(self, job_id: str) -> Stopped:
        """Stop a job and keep its policy."""
        return self._ask(Stopped, "POST", f"/training/{quote_name(job_id)}/stop")

    def resume(self, job_id: str) -> Resumed:
        """Let a stopped or failed job go on from its checkpoint; without one it begins again."""
        return self._ask(Resumed, "POST", f"/training/{quote_name(job_id)}/resume")

    def metrics(self, job_id: str) -> MetricHistory:
        """Get the metrics of a job over time."""
        return self._ask(MetricHistory, "GET", f"/training/{quote_name(job_id)}/metrics")

    def metrics_csv(self, job_id: str) -> str:
        """Get the metrics of a job as a CSV table."""
        path = f"/training/{quote_name(job_id)}/metrics"
        return check_type(self._request("GET", path, params={"format": "csv"}), "text/csv").text

    def curve(self, job_id: str, path: FilePath, metric: str | None = None, theme: str | None = None) -> Path:
        """Save a learning curve as PNG.

        :param metric: A log key; None for the episode reward.
        :param theme: ``"light"`` or ``"dark"``.
        """
        target, query = read_target(path), _leave_out_none(metric=metric, theme=theme)
        response = self._request("GET", f"/training/{quote_name(job_id)}/curve", params=query or None)
        return save_file(target, check_type(response, "image/png").content)

    def job_video(
        self, job_id: str, path: FilePath, seed: int = 0, deterministic: bool = True, max_steps: int = 500
    ) -> Video:
        """Film an episode of a job's newest policy, also while it trains, and save it.

        :param path: Ends in ``.gif`` or ``.mp4``.
        :raises InvalidArgument: If it does not.
        :raises ApiError: 409 before the job's first checkpoint.
        """
        return self._film(f"/training/{quote_name(job_id)}/video", path, seed, deterministic, max_steps)

    def events(self, job_id: str, after: int = 0, timeout_seconds: float | None = None) -> Events:
        """Iterate over the events of a job, past ones first, until the last one.

        A lost connection is opened again, and goes on after the last event received.

        :param after: Only events with a larger id. One beyond the latest event, as of another job, is taken for
            0, and all come.
        :param timeout_seconds: How long to follow the job; None to its end. If the job is over by then, only its last
            event still comes.
        :raises JobTimeout: If the job is not over by then.
        :raises ApiError: If there is no such job, or the server refuses.
        :raises ServerUnreachable: If no connection came about in ``max_retries`` attempts, or one that was lost did not
            come back within a minute, as a server does that is started again.
        """
        deadline = Deadline(timeout_seconds)
        if job_id == LATEST_JOB:  # by the time the stream is opened again, that may be another job
            job_id = (self.status(job_id)).job_id
        path, attempts = f"/training/{quote_name(job_id)}/events", Attempts(self._retries)
        asked_after, is_over = after, False
        event: JobEvent | None = None
        while True:
            outcome: httpx2.Response | httpx2.RequestError | None = None
            try:
                with closing(self._read_stream(path, after, deadline)) as events:
                    for event in events:
                        after = event.event_id
                        attempts.note_success()
                        yield event
            except (httpx2.HTTPStatusError, httpx2.RequestError) as error:
                outcome = error.response if isinstance(error, httpx2.HTTPStatusError) else error
            if event is not None and event.is_terminal:
                return
            if deadline.has_passed:
                yield self._find_end(job_id, after, deadline)
                return
            is_idle = outcome is None and after == asked_after > 0  # that may be the last event's id
            if is_idle and is_over:
                return
            is_over = is_idle and self._is_over(job_id)
            if not is_over:  # if it is, its last event may have come since the stream was opened
                self._pause_stream(outcome, attempts, deadline)

    def _read_stream(self, path: str, after: int, deadline: Deadline) -> Events:
        """Iterate over the events of one stream until it ends, the job has ended or the deadline has passed.

        :raises HTTPStatusError: If the server refuses; its answer has been read.
        :raises RequestError: If the connection is lost.
        """
        silence_seconds = _DEADLINE_CHECK_SECONDS if deadline.is_set else _SILENCE_SECONDS
        with self._open_stream(path, after, deadline.limit(silence_seconds)) as source:
            for received in source:
                event = read_event(received)
                yield event
                if event.is_terminal or deadline.has_passed:
                    return

    @contextmanager
    def _open_stream(self, path: str, after: int, timeout_seconds: float) -> Iterator[httpx2.EventSource]:
        """Open a stream of events.

        :raises HTTPStatusError: If the server refuses; its answer has been read.
        """
        headers = {"Last-Event-ID": str(after)}
        with explain_request():
            with self._http.sse(path, headers=headers, timeout=timeout_seconds) as source:
                if not source.response.is_success:
                    source.response.read()
                    raise httpx2.HTTPStatusError("refused", request=source.response.request, response=source.response)
                check_type(source.response, "text/event-stream")
                yield source

    def _pause_stream(
        self, outcome: httpx2.Response | httpx2.RequestError | None, attempts: Attempts, deadline: Deadline
    ) -> None:
        """Pause before a stream is opened again."""
        if isinstance(outcome, httpx2.ReadTimeout) and deadline.is_set:  # it was only silent
            return
        pause_seconds = attempts.find_pause_seconds(outcome)
        if pause_seconds is None:
            raise make_error(outcome)
        time.sleep(deadline.limit(pause_seconds))

    def _find_end(self, job_id: str, after: int, deadline: Deadline) -> JobEvent:
        """Return the last event of a job that is over, although its deadline passed before that event was read.

        :param after: The id of the last event that was read.
        :raises JobTimeout: If it is not over, or no answer came in time.
        """
        try:
            status = self._ask_status_once(job_id)
        except (ServerUnreachable, Busy) as error:
            raise deadline.make_error(job_id) from error
        if not status.is_final:
            raise deadline.make_error(job_id)
        return make_last_event(status, after + 1)

    def _is_over(self, job_id: str) -> bool:
        """Tell whether a job is over, as far as one question shows."""
        with suppress(ServerUnreachable, Busy):
            return (self._ask_status_once(job_id)).is_final
        return False

    def _ask_status_once(self, job_id: str) -> TrainingStatus:
        path = f"/training/{quote_name(job_id)}/status"
        outcome = self._send("GET", path, timeout=_DEADLINE_CHECK_SECONDS)
        return TrainingStatus.parse(read_json(check_response(outcome)))

    def wait(
        self,
        job_id: str,
        timeout_seconds: float | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        progress: bool = False,
    ) -> TrainingStatus:
        """Wait for a job to end, and return its final status.

        :param timeout_seconds: How long to wait; None without a limit.
        :param on_event: Called with every event; an ordinary function.
        :param progress: Whether to show a bar with the reward, the entropy and the time left, which needs rich.
        :raises JobFailed: If the job fails, or the server's shutdown stops it.
        :raises JobTimeout: If the job is not over in time; it goes on.
        """
        with closing(self.events(job_id, timeout_seconds=timeout_seconds)) as events:
            with make_listener(on_event, progress) as listen:
                for event in events:
                    listen(event)
        status = event.final_status
        if status.status == "failed" or status.is_interrupted:
            raise JobFailed(status)
        return status

    def start_sweep(self, /, space: dict[str, Any] | None = None, **settings: Any) -> SweepStarted:
        """Try several settings, each in jobs of its own.

        :param space: Fields of ``POST /train``, each with a list of values or a range, such as ``{"distribution":
            "loguniform", "low": 1e-4, "high": 1e-2}``.
        :param settings: Other fields of ``POST /sweeps``, such as ``base``, ``method``, ``n_trials``, ``seeds``.
        """
        body = {"space": space or {}, **settings}
        return self._ask(SweepStarted, "POST", "/sweeps", json=body, timeout=_WORK_TIMEOUT_SECONDS)

    def sweeps(self, limit: int | None = None, after: str | None = None) -> list[SweepSummary]:
        """List the sweeps, newest first.

        :param limit: The most to list; None leaves it to the server, which lists 50.
        :param after: Only sweeps before the one with this id.
        """
        return self._list(SweepSummary, "sweeps", "/sweeps", limit=limit, after=after)

    def sweep(self, sweep_id: str = LATEST_SWEEP) -> Sweep:
        """Get a sweep: its settings by what they earned, and which is the best; by default the newest one."""
        return self._ask(Sweep, "GET", f"/sweeps/{quote_name(sweep_id)}")

    def wait_for_sweep(
        self,
        sweep_id: str = LATEST_SWEEP,
        timeout_seconds: float | None = None,
        on_look: Callable[[Sweep], None] | None = None,
    ) -> Sweep:
        """Wait until no job of a sweep is left, and return what came of it.

        :param timeout_seconds: How long to wait; None without a limit.
        :param on_look: Called with the sweep as it is, about once a second; an ordinary function.
        :raises JobTimeout: If it is not over in time; it goes on.
        """
        deadline = Deadline(timeout_seconds)
        while True:
            sweep = self.sweep(sweep_id)
            sweep_id = sweep.sweep_id
            if on_look is not None:
                tell(on_look, sweep, "on_look")
            if not sweep.is_active:
                return sweep
            if deadline.has_passed:
                raise deadline.make_error(sweep_id, "sweep")
            time.sleep(deadline.limit(_SWEEP_SECONDS))

    def stop_sweep(self, sweep_id: str) -> SweepChanged:
        """Stop all jobs of a sweep, and start no more; its best model is kept."""
        return self._ask(SweepChanged, "POST", f"/sweeps/{quote_name(sweep_id)}/stop")

    def resume_sweep(self, sweep_id: str) -> SweepChanged:
        """Go on with a sweep that was stopped, or interrupted by the end of the server."""
        return self._ask(SweepChanged, "POST", f"/sweeps/{quote_name(sweep_id)}/resume")

    def delete_sweep(self, sweep_id: str) -> SweepChanged:
        """Forget a sweep that has ended; its jobs and the models that it has kept stay."""
        return self._ask(SweepChanged, "DELETE", f"/sweeps/{quote_name(sweep_id)}")

    def predict(
        self, model_name: str, observation: Any, deterministic: bool = True, action_masks: Any = None
    ) -> Prediction:
        """Ask a policy for an action.

        :param observation: Numbers, lists or arrays of them, or a dict of these, as the environment gives it.
        :param deterministic: Whether to take the most likely action instead of sampling one.
        :param action_masks: Which actions are allowed; None for all.
        """
        body = {"model_name": model_name, "observation": observation, "deterministic": deterministic}
        masks = _leave_out_none(action_masks=action_masks)
        return self._ask(Prediction, "POST", "/inference", json=body | masks)

    def predict_batch(
        self,
        model_name: str,
        observations: Sequence[Any],
        deterministic: bool = True,
        action_masks: Sequence[Any] | None = None,
    ) -> list[Prediction | ItemError]:
        """Ask a policy for one action per observation; an observation that does not fit gets an error of its own."""
        body = {"model_name": model_name, "observations": observations, "deterministic": deterministic}
        masks = _leave_out_none(action_masks=action_masks)
        response = self._request("POST", "/inference/batch", json=body | masks)
        return [parse_item(item) for item in read_list(response, "answers")]

    def predict_array(
        self, model_name: str, observations: "npt.NDArray[Any]", deterministic: bool = True
    ) -> "npt.NDArray[Any]":
        """Ask a policy for actions as an array, which skips JSON; one observation that does not fit refuses all.

        :param observations: ``(batch_size, *observation_shape)``.
        :return: ``(batch_size, *action_shape)``.
        """
        np = import_numpy()
        file = io.BytesIO()
        with explain_request():
            np.save(file, observations, allow_pickle=False)
        response = self._request(
            "POST",
            "/inference/batch",
            params={"model_name": model_name, "deterministic": deterministic},
            content=file.getvalue(),
            headers={"Content-Type": _ARRAY_TYPE, "Accept": _ARRAY_TYPE},
        )
        return read_array(response)

    def models(self) -> list[ModelSummary]:
        """List the models."""
        return self._list(ModelSummary, "models", "/models")

    def model(self, model_name: str) -> ModelCard:
        """Get the card of a model: what its file says of it."""
        return self._ask(ModelCard, "GET", f"/models/{quote_name(model_name)}")

    def evaluate(self, model_name: str, n_episodes: int = 20, seed: int = 0, deterministic: bool = True) -> Comparison:
        """Play whole episodes with a policy and with random actions."""
        return self._ask(
            Comparison,
            "POST",
            f"/models/{quote_name(model_name)}/evaluate",
            json={"n_episodes": n_episodes, "seed": seed, "deterministic": deterministic},
            timeout=_WORK_TIMEOUT_SECONDS,
        )

    def video(
        self, model_name: str, path: FilePath, seed: int = 0, deterministic: bool = True, max_steps: int = 500
    ) -> Video:
        """Film an episode, and save it.

        :param path: Ends in ``.gif`` or ``.mp4``.
        :raises InvalidArgument: If it does not.
        """
        return self._film(f"/models/{quote_name(model_name)}/video", path, seed, deterministic, max_steps)

    def _film(self, address: str, path: FilePath, seed: int, deterministic: bool, max_steps: int) -> Video:
        target = read_target(path)
        query = {
            "format": get_video_format(target),
            "seed": seed,
            "deterministic": deterministic,
            "max_steps": max_steps,
        }
        return save_video(target, self._request("GET", address, params=query, timeout=_WORK_TIMEOUT_SECONDS))

    def download(self, model_name: str, path: FilePath | None = None) -> Path:
        """Save a model file, which ``GRPO.load`` reads.

        :param path: A file; or a folder, which is there or whose name ends in a slash, for ``<model_name>.zip``. None
            saves that here.
        :raises InvalidArgument: If it is no path.
        """
        address, target = f"/models/{quote_name(model_name)}/file", place_model(path, model_name)
        return save_model(target, self._request("GET", address))

    def export(self, model_name: str, path: FilePath, action_masks: bool = False) -> Path:
        """Save a policy for programs without GRPO: observations in, the most likely actions out.

        :param path: Ends in ``.onnx``, or in ``.pt`` for TorchScript.
        :param action_masks: Whether the policy takes masks beside every observation.
        :raises InvalidArgument: If the path ends otherwise.
        """
        target = read_target(path)
        query = {"format": get_export_format(target), "action_masks": action_masks}
        response = self._request(
            "GET", f"/models/{quote_name(model_name)}/export", params=query, timeout=_WORK_TIMEOUT_SECONDS
        )
        return save_export(target, response)

    def upload(self, model_name: str, path: FilePath, overwrite: bool = False) -> ModelCard:
        """Put a model file on the server.

        :param overwrite: Whether to replace a model of that name.
        :raises Conflict: If there is one, and ``overwrite`` is false.
        :raises FileProblem: If the file cannot be read.
        """
        return self._ask(
            ModelCard,
            "PUT",
            f"/models/{quote_name(model_name)}/file",
            params={"overwrite": overwrite},
            content=read_file(path),
            headers={"Content-Type": "application/zip"},
        )

    def delete(self, model_name: str) -> Deleted:
        """Delete a model."""
        return self._ask(Deleted, "DELETE", f"/models/{quote_name(model_name)}")

    def versions(self, model_name: str) -> ModelVersions:
        """List the versions of a model, the newest first, and its aliases."""
        return self._ask(ModelVersions, "GET", f"/models/{quote_name(model_name)}/versions")

    def set_alias(self, model_name: str, alias: str, version: int | None = None) -> Alias:
        """Point an alias at a version: ``<model_name>@<alias>`` means it wherever a model is named.

        :param version: Its number; None for the newest.
        """
        path = f"/models/{quote_name(model_name)}/aliases/{quote_name(alias)}"
        return self._ask(Alias, "PUT", path, json=_leave_out_none(version=version))

    def delete_alias(self, model_name: str, alias: str) -> Alias:
        """Delete an alias."""
        return self._ask(Alias, "DELETE", f"/models/{quote_name(model_name)}/aliases/{quote_name(alias)}")

    def rollback(self, model_name: str, version: int | None = None) -> RolledBack:
        """Make an earlier version of a model the newest again.

        :param version: Its number; None for the one before the newest.
        """
        path = f"/models/{quote_name(model_name)}/rollback"
        return self._ask(RolledBack, "POST", path, json=_leave_out_none(version=version))

    def environments(self, search: str | None = None) -> list[EnvironmentSummary]:
        """List the environments.

        :param search: Only those with this text in their names.
        """
        return self._list(EnvironmentSummary, "environments", "/environments", search=search)

    def environment(self, env_name: str) -> Environment:
        """Get the spaces, the limits and the preset of an environment."""
        names = env_name.split("/") if isinstance(env_name, str) else [env_name]  # one may have a namespace before it
        path = f"/environments/{'/'.join(map(quote_name, names))}"
        return self._ask(Environment, "GET", path, timeout=_WORK_TIMEOUT_SECONDS)

    def reward_functions(self) -> list[RewardFunction]:
        """List the reward functions that a job can name."""
        return self._list(RewardFunction, "reward_functions", "/reward-functions")


class Job:
    """A job on a server.

    :param client: The client to ask with.
    :param job_id: Its id.
    :param config: Its settings, every default filled in.
    """

    def __init__(self, client: Client, job_id: str, config: Any) -> None:
        self._client = client
        self.job_id = job_id
        self.config = config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.job_id!r})"

    def status(self) -> TrainingStatus:
        """Get the status of the job."""
        return self._client.status(self.job_id)

    def stop(self) -> Stopped:
        """Stop the job and keep its policy."""
        return self._client.stop(self.job_id)

    def metrics(self) -> MetricHistory:
        """Get the metrics of the job over time."""
        return self._client.metrics(self.job_id)

    def events(self, after: int = 0, timeout_seconds: float | None = None) -> Events:
        """Iterate over the events of the job, like ``events`` of the client."""
        return self._client.events(self.job_id, after, timeout_seconds)

    def wait(
        self,
        timeout_seconds: float | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        progress: bool = False,
    ) -> TrainingStatus:
        """Wait for the job to end, like ``wait`` of the client."""
        return self._client.wait(self.job_id, timeout_seconds, on_event, progress)

    def curve(self, path: FilePath, metric: str | None = None, theme: str | None = None) -> Path:
        """Save a learning curve of the job as PNG."""
        return self._client.curve(self.job_id, path, metric, theme)

    def video(self, path: FilePath, seed: int = 0, deterministic: bool = True, max_steps: int = 500) -> Video:
        """Film an episode of the job's newest policy, also while it trains, and save it."""
        return self._client.job_video(self.job_id, path, seed, deterministic, max_steps)
