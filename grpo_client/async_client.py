"""The client that awaits: ``Client`` with the same methods, to be awaited; see there for what they do."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx2

from grpo_client import answers, calls
from grpo_client.bars import make_listener
from grpo_client.calls import Call
from grpo_client.client import DEFAULT_RETRIES, DEFAULT_TIMEOUT_SECONDS, DEFAULT_URL
from grpo_client.files import FilePath, get_video_format, save_file, save_model, save_video
from grpo_client.steps import Retries, attempt, conclude, follow
from grpo_client.wire import AsyncWire, make_options

if TYPE_CHECKING:
    import numpy.typing as npt

T = TypeVar("T")


class AsyncClient:
    """Does what ``Client`` does, with the same arguments, on an event loop of asyncio or trio."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        max_retries: int = DEFAULT_RETRIES,
    ) -> None:
        self._retries = Retries(max_retries)
        self._http = httpx2.AsyncClient(**make_options(base_url, api_key, timeout_seconds))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See ``Client.close``."""
        await self._http.aclose()

    async def _call(self, call: Call[T]) -> T:
        return await AsyncWire(self._http).run(attempt(call, self._retries))

    async def server_info(self) -> answers.ServerInfo:
        """See ``Client.server_info``."""
        return await self._call(calls.get_server_info())

    async def health(self) -> answers.Health:
        """See ``Client.health``."""
        return await self._call(calls.check_health())

    async def train(self, **settings: Any) -> "AsyncJob":
        """See ``Client.train``."""
        submission = await self._call(calls.train(settings))
        return AsyncJob(self, submission.job_id, submission.config)

    async def job(self, job_id: str = "latest") -> "AsyncJob":
        """See ``Client.job``."""
        status = await self.status(job_id)
        return AsyncJob(self, status.job_id, status.config)

    async def jobs(
        self, status: str | None = None, limit: int | None = None, after: str | None = None
    ) -> list[answers.JobSummary]:
        """See ``Client.jobs``."""
        return await self._call(calls.list_jobs(status, limit, after))

    async def status(self, job_id: str) -> answers.TrainingStatus:
        """See ``Client.status``."""
        return await self._call(calls.get_status(job_id))

    async def stop(self, job_id: str) -> answers.Stopped:
        """See ``Client.stop``."""
        return await self._call(calls.stop(job_id))

    async def metrics(self, job_id: str) -> answers.MetricHistory:
        """See ``Client.metrics``."""
        return await self._call(calls.get_metrics(job_id))

    async def metrics_csv(self, job_id: str) -> str:
        """See ``Client.metrics_csv``."""
        return await self._call(calls.get_metrics_csv(job_id))

    async def curve(self, job_id: str, path: FilePath, metric: str | None = None, theme: str | None = None) -> Path:
        """See ``Client.curve``."""
        return save_file(path, (await self._call(calls.draw_curve(job_id, metric, theme))).content)

    def events(
        self, job_id: str, after: int = 0, timeout_seconds: float | None = None
    ) -> AsyncGenerator[answers.JobEvent, None]:
        """See ``Client.events``."""
        return AsyncWire(self._http).iterate(follow(job_id, after, timeout_seconds, self._retries))

    async def wait(
        self,
        job_id: str,
        timeout_seconds: float | None = None,
        on_event: Callable[[answers.JobEvent], None] | None = None,
        progress: bool = False,
    ) -> answers.TrainingStatus:
        """See ``Client.wait``."""
        async with aclosing(self.events(job_id, timeout_seconds=timeout_seconds)) as events:
            with make_listener(on_event, progress) as listen:
                async for event in events:
                    listen(event)
        return conclude(event.final_status)

    async def predict(
        self, model_name: str, observation: Any, deterministic: bool = True, action_masks: Any = None
    ) -> answers.Prediction:
        """See ``Client.predict``."""
        return await self._call(calls.predict(model_name, observation, deterministic, action_masks))

    async def predict_batch(
        self,
        model_name: str,
        observations: Sequence[Any],
        deterministic: bool = True,
        action_masks: Sequence[Any] | None = None,
    ) -> list[answers.Prediction | answers.ItemError]:
        """See ``Client.predict_batch``."""
        return await self._call(calls.predict_batch(model_name, observations, deterministic, action_masks))

    async def predict_array(
        self, model_name: str, observations: "npt.NDArray[Any]", deterministic: bool = True
    ) -> "npt.NDArray[Any]":
        """See ``Client.predict_array``."""
        return await self._call(calls.predict_array(model_name, observations, deterministic))

    async def models(self) -> list[answers.ModelSummary]:
        """See ``Client.models``."""
        return await self._call(calls.list_models())

    async def model(self, model_name: str) -> answers.ModelCard:
        """See ``Client.model``."""
        return await self._call(calls.get_model(model_name))

    async def evaluate(
        self, model_name: str, n_episodes: int = 20, seed: int = 0, deterministic: bool = True
    ) -> answers.Comparison:
        """See ``Client.evaluate``."""
        return await self._call(calls.evaluate(model_name, n_episodes, seed, deterministic))

    async def video(
        self, model_name: str, path: FilePath, seed: int = 0, deterministic: bool = True, max_steps: int = 500
    ) -> answers.Video:
        """See ``Client.video``."""
        call = calls.film(model_name, get_video_format(path), seed, deterministic, max_steps)
        return save_video(path, await self._call(call))

    async def download(self, model_name: str, path: FilePath | None = None) -> Path:
        """See ``Client.download``."""
        return save_model(path or f"{model_name}.zip", await self._call(calls.download(model_name)))

    async def upload(self, model_name: str, path: FilePath, overwrite: bool = False) -> answers.ModelCard:
        """See ``Client.upload``."""
        return await self._call(calls.upload(model_name, Path(path).read_bytes(), overwrite))

    async def delete(self, model_name: str) -> answers.Deleted:
        """See ``Client.delete``."""
        return await self._call(calls.delete_model(model_name))

    async def environments(self, search: str | None = None) -> list[answers.EnvironmentSummary]:
        """See ``Client.environments``."""
        return await self._call(calls.list_environments(search))

    async def environment(self, env_name: str) -> answers.Environment:
        """See ``Client.environment``."""
        return await self._call(calls.get_environment(env_name))

    async def reward_functions(self) -> list[answers.RewardFunction]:
        """See ``Client.reward_functions``."""
        return await self._call(calls.list_reward_functions())


class AsyncJob:
    """A job on a server; see ``Job``."""

    def __init__(self, client: AsyncClient, job_id: str, config: Any) -> None:
        self._client = client
        self.job_id = job_id
        self.config = config

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.job_id!r})"

    async def status(self) -> answers.TrainingStatus:
        """See ``Client.status``."""
        return await self._client.status(self.job_id)

    async def stop(self) -> answers.Stopped:
        """See ``Client.stop``."""
        return await self._client.stop(self.job_id)

    async def metrics(self) -> answers.MetricHistory:
        """See ``Client.metrics``."""
        return await self._client.metrics(self.job_id)

    def events(self, after: int = 0, timeout_seconds: float | None = None) -> AsyncGenerator[answers.JobEvent, None]:
        """See ``Client.events``."""
        return self._client.events(self.job_id, after, timeout_seconds)

    async def wait(
        self,
        timeout_seconds: float | None = None,
        on_event: Callable[[answers.JobEvent], None] | None = None,
        progress: bool = False,
    ) -> answers.TrainingStatus:
        """See ``Client.wait``."""
        return await self._client.wait(self.job_id, timeout_seconds, on_event, progress)

    async def curve(self, path: FilePath, metric: str | None = None, theme: str | None = None) -> Path:
        """See ``Client.curve``."""
        return await self._client.curve(self.job_id, path, metric, theme)
