"""The client that blocks."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx2

from grpo_client import answers, calls
from grpo_client.bars import make_listener
from grpo_client.calls import Call
from grpo_client.files import FilePath, get_video_format, save_file, save_model, save_video
from grpo_client.steps import Retries, attempt, conclude, follow
from grpo_client.wire import SyncWire, make_options

if TYPE_CHECKING:
    import numpy.typing as npt

T = TypeVar("T")

DEFAULT_URL = "http://localhost:8000"
DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_RETRIES = 5


class Client:
    """Trains on a GRPO server, and asks its policies for actions. May be used by several threads at once.

    A refusal is an ``ApiError``; where the server has no room (429, 503) it is asked again first, after as long as it
    says. A lost connection is tried again where nothing can have happened twice.

    :param base_url: Where the server is.
    :param api_key: Its ``GRPO_API_KEY``, if it has one.
    :param timeout_seconds: How long the server may take to connect, to begin to answer and between parts of an answer.
    :param max_retries: How often at most a request is sent again.
    :raises ValueError: If an argument cannot work.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_retries: int = DEFAULT_RETRIES,
    ) -> None:
        self._retries = Retries(max_retries)
        self._http = httpx2.Client(**make_options(base_url, api_key, timeout_seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(self, call: Call[T]) -> T:
        return SyncWire(self._http).run(attempt(call, self._retries))

    def server_info(self) -> answers.ServerInfo:
        """Ask what the server offers."""
        return self._call(calls.get_server_info())

    def health(self) -> answers.Health:
        """Ask whether the server lives, and what it holds."""
        return self._call(calls.check_health())

    def train(self, **settings: Any) -> "Job":
        """Start a job.

        :param settings: Fields of ``POST /train``, such as ``env_name``, ``total_timesteps``, ``model_name``.
        """
        submission = self._call(calls.train(settings))
        return Job(self, submission.job_id, submission.config)

    def job(self, job_id: str = "latest") -> "Job":
        """Get hold of a job that was started before; by default of the last one.

        :raises NotFound: If there is none.
        """
        status = self.status(job_id)
        return Job(self, status.job_id, status.config)

    def jobs(
        self, status: str | None = None, limit: int | None = None, after: str | None = None
    ) -> list[answers.JobSummary]:
        """List the jobs, oldest first.

        :param status: Only those that are there, such as ``"running"``.
        :param limit: At most so many.
        :param after: Only jobs that were submitted after this one.
        """
        return self._call(calls.list_jobs(status, limit, after))

    def status(self, job_id: str) -> answers.TrainingStatus:
        """Ask where a job is; ``"latest"`` is the one submitted last, here and below."""
        return self._call(calls.get_status(job_id))

    def stop(self, job_id: str) -> answers.Stopped:
        """Stop a job; the policy so far is kept."""
        return self._call(calls.stop(job_id))

    def metrics(self, job_id: str) -> answers.MetricHistory:
        """Ask for what a job has measured over time."""
        return self._call(calls.get_metrics(job_id))

    def metrics_csv(self, job_id: str) -> str:
        """Ask for the same as a table."""
        return self._call(calls.get_metrics_csv(job_id))

    def curve(self, job_id: str, path: FilePath, metric: str | None = None, theme: str | None = None) -> Path:
        """Save a picture of a learning curve, PNG.

        :param metric: A log key; None for the episode reward.
        :param theme: ``"light"`` or ``"dark"``.
        """
        return save_file(path, self._call(calls.draw_curve(job_id, metric, theme)).content)

    def events(
        self, job_id: str, after: int = 0, timeout_seconds: float | None = None
    ) -> Generator[answers.JobEvent, None, None]:
        """Tell a job's events as they happen until its last one; those that there were already come first.

        A connection that is lost is opened again where it was lost.

        :param after: Id of an event; only later ones are told.
        :param timeout_seconds: How long to follow the job; None to its end.
        :raises JobTimeout: If it is not over then.
        """
        return SyncWire(self._http).iterate(follow(job_id, after, timeout_seconds, self._retries))

    def wait(
        self,
        job_id: str,
        timeout_seconds: float | None = None,
        on_event: Callable[[answers.JobEvent], None] | None = None,
        progress: bool = False,
    ) -> answers.TrainingStatus:
        """Wait for the end of a job, and return its final status.

        :param timeout_seconds: How long; None for as long as it takes.
        :param on_event: Called with every event.
        :param progress: Show a bar with the reward, the entropy and the time left, which needs rich.
        :raises JobFailed: If it fails.
        :raises JobTimeout: If it is not over in time; it goes on.
        """
        with closing(self.events(job_id, timeout_seconds=timeout_seconds)) as events:
            with make_listener(on_event, progress) as listen:
                for event in events:
                    listen(event)
        return conclude(event.final_status)

    def predict(
        self, model_name: str, observation: Any, deterministic: bool = True, action_masks: Any = None
    ) -> answers.Prediction:
        """Ask a policy for an action.

        :param observation: Numbers, lists or arrays of them, or a dict of these, as the environment gives it.
        :param deterministic: Take the most likely action instead of drawing one.
        :param action_masks: Which actions are allowed; None for all.
        """
        return self._call(calls.predict(model_name, observation, deterministic, action_masks))

    def predict_batch(
        self,
        model_name: str,
        observations: Sequence[Any],
        deterministic: bool = True,
        action_masks: Sequence[Any] | None = None,
    ) -> list[answers.Prediction | answers.ItemError]:
        """Ask for one action per observation; one that does not fit has an error, and the others are answered."""
        return self._call(calls.predict_batch(model_name, observations, deterministic, action_masks))

    def predict_array(
        self, model_name: str, observations: "npt.NDArray[Any]", deterministic: bool = True
    ) -> "npt.NDArray[Any]":
        """Ask for the actions of many observations at once, all of them or none, without the detour of JSON.

        :param observations: ``(batch_size, *observation_shape)``.
        :return: ``(batch_size, *action_shape)``.
        """
        return self._call(calls.predict_array(model_name, observations, deterministic))

    def models(self) -> list[answers.ModelSummary]:
        """List the models."""
        return self._call(calls.list_models())

    def model(self, model_name: str) -> answers.ModelCard:
        """Ask what a model's file says of it."""
        return self._call(calls.get_model(model_name))

    def evaluate(
        self, model_name: str, n_episodes: int = 20, seed: int = 0, deterministic: bool = True
    ) -> answers.Comparison:
        """Have a policy play whole episodes, beside random actions."""
        return self._call(calls.evaluate(model_name, n_episodes, seed, deterministic))

    def video(
        self, model_name: str, path: FilePath, seed: int = 0, deterministic: bool = True, max_steps: int = 500
    ) -> answers.Video:
        """Have an episode filmed, and save it.

        :param path: Ends in ``.gif`` or ``.mp4``.
        :raises ValueError: If it does not.
        """
        call = calls.film(model_name, get_video_format(path), seed, deterministic, max_steps)
        return save_video(path, self._call(call))

    def download(self, model_name: str, path: FilePath | None = None) -> Path:
        """Save a model file, which ``GRPO.load`` reads; by default as ``<model_name>.zip``."""
        return save_model(path or f"{model_name}.zip", self._call(calls.download(model_name)))

    def upload(self, model_name: str, path: FilePath, overwrite: bool = False) -> answers.ModelCard:
        """Put a model file on the server.

        :param overwrite: Whether to replace a model of that name.
        :raises Conflict: If there is one, and it is not to be replaced.
        """
        return self._call(calls.upload(model_name, Path(path).read_bytes(), overwrite))

    def delete(self, model_name: str) -> answers.Deleted:
        """Delete a model."""
        return self._call(calls.delete_model(model_name))

    def environments(self, search: str | None = None) -> list[answers.EnvironmentSummary]:
        """List what can be trained in.

        :param search: Part of the names.
        """
        return self._call(calls.list_environments(search))

    def environment(self, env_name: str) -> answers.Environment:
        """Ask what an environment is like."""
        return self._call(calls.get_environment(env_name))

    def reward_functions(self) -> list[answers.RewardFunction]:
        """List what can be trained on beside an environment's own reward."""
        return self._call(calls.list_reward_functions())


class Job:
    """A job on a server.

    :param client: Who asks the server.
    :param job_id: Its id.
    :param config: What it trains with, every default filled in.
    """

    def __init__(self, client: Client, job_id: str, config: Any) -> None:
        self._client = client
        self.job_id = job_id
        self.config = config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.job_id!r})"

    def status(self) -> answers.TrainingStatus:
        """See ``Client.status``."""
        return self._client.status(self.job_id)

    def stop(self) -> answers.Stopped:
        """See ``Client.stop``."""
        return self._client.stop(self.job_id)

    def metrics(self) -> answers.MetricHistory:
        """See ``Client.metrics``."""
        return self._client.metrics(self.job_id)

    def events(self, after: int = 0, timeout_seconds: float | None = None) -> Generator[answers.JobEvent, None, None]:
        """See ``Client.events``."""
        return self._client.events(self.job_id, after, timeout_seconds)

    def wait(
        self,
        timeout_seconds: float | None = None,
        on_event: Callable[[answers.JobEvent], None] | None = None,
        progress: bool = False,
    ) -> answers.TrainingStatus:
        """See ``Client.wait``."""
        return self._client.wait(self.job_id, timeout_seconds, on_event, progress)

    def curve(self, path: FilePath, metric: str | None = None, theme: str | None = None) -> Path:
        """See ``Client.curve``."""
        return self._client.curve(self.job_id, path, metric, theme)
