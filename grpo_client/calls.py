"""Every request that the server answers, described once: what is sent, and how the answer is read."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import httpx2

from grpo_client.answers import (
    Answer,
    Comparison,
    Deleted,
    Environment,
    EnvironmentSummary,
    Health,
    ItemError,
    JobSummary,
    MetricHistory,
    ModelCard,
    ModelSummary,
    Prediction,
    RewardFunction,
    ServerInfo,
    Stopped,
    Submission,
    TrainingStatus,
    parse_item,
)
from grpo_client.errors import ServerUnreachable

if TYPE_CHECKING:
    import numpy.typing as npt

T = TypeVar("T")
A = TypeVar("A", bound=Answer)

_ARRAY_TYPE = "application/octet-stream"
# Whole episodes are played before the answer.
_PLAYING_SECONDS = 600.0


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request.

    :param method: HTTP method.
    :param path: Below the server's URL.
    :param parse: Reads the answer.
    :param query: Parameters of the URL.
    :param json: The body, as JSON; None sends none.
    :param content: The body as it is, instead.
    :param headers: Beside those of every request.
    :param timeout_seconds: How long the server may think, if not as long as usually.
    """

    method: str
    path: str
    parse: Callable[[httpx2.Response], T]
    query: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: float | None = None


def _as(answer: type[A]) -> Callable[[httpx2.Response], A]:
    return lambda response: answer.parse(_read_json(response))


def _as_list(key: str, parse: Callable[[Any], T]) -> Callable[[httpx2.Response], list[T]]:
    def read(response: httpx2.Response) -> list[T]:
        body = _read_json(response)
        if not isinstance(body, dict) or not isinstance(body.get(key), list):
            raise ServerUnreachable(f"the answer has no list '{key}': this is no GRPO server; check the URL.")
        return [parse(item) for item in body[key]]

    return read


def _read_json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise ServerUnreachable(
            f"the answer of {response.url} is no JSON: this is no GRPO server; check the URL."
        ) from error


def _as_is(response: httpx2.Response) -> httpx2.Response:
    return response


def _quote(name: str) -> str:
    return quote(name, safe="")


def _leave_out_none(**query: Any) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def get_server_info() -> Call[ServerInfo]:
    """Describe ``GET /``."""
    return Call("GET", "/", _as(ServerInfo))


def check_health() -> Call[Health]:
    """Describe ``GET /health``."""
    return Call("GET", "/health", _as(Health))


def train(settings: Mapping[str, Any]) -> Call[Submission]:
    """Describe ``POST /train``."""
    return Call("POST", "/train", _as(Submission), json=_to_plain(settings))


def list_jobs(status: str | None, limit: int | None, after: str | None) -> Call[list[JobSummary]]:
    """Describe ``GET /training/jobs``."""
    query = _leave_out_none(status=status, limit=limit, after=after)
    return Call("GET", "/training/jobs", _as_list("jobs", JobSummary.parse), query)


def get_status(job_id: str) -> Call[TrainingStatus]:
    """Describe ``GET /training/{job_id}/status``."""
    return Call("GET", f"/training/{_quote(job_id)}/status", _as(TrainingStatus))


def stop(job_id: str) -> Call[Stopped]:
    """Describe ``POST /training/{job_id}/stop``."""
    return Call("POST", f"/training/{_quote(job_id)}/stop", _as(Stopped))


def get_metrics(job_id: str) -> Call[MetricHistory]:
    """Describe ``GET /training/{job_id}/metrics``."""
    return Call("GET", f"/training/{_quote(job_id)}/metrics", _as(MetricHistory))


def get_metrics_csv(job_id: str) -> Call[str]:
    """Describe ``GET /training/{job_id}/metrics?format=csv``."""
    return Call("GET", f"/training/{_quote(job_id)}/metrics", lambda response: response.text, {"format": "csv"})


def listen(job_id: str, after: int, timeout_seconds: float) -> Call[httpx2.Response]:
    """Describe ``GET /training/{job_id}/events``.

    :param after: Id of the last event that was received.
    :param timeout_seconds: How long the stream may be silent.
    """
    headers = {"Last-Event-ID": str(after)}
    return Call("GET", f"/training/{_quote(job_id)}/events", _as_is, headers=headers, timeout_seconds=timeout_seconds)


def draw_curve(job_id: str, metric: str | None, theme: str | None) -> Call[httpx2.Response]:
    """Describe ``GET /training/{job_id}/curve``."""
    return Call("GET", f"/training/{_quote(job_id)}/curve", _as_is, _leave_out_none(metric=metric, theme=theme))


def predict(model_name: str, observation: Any, deterministic: bool, action_masks: Any) -> Call[Prediction]:
    """Describe ``POST /inference``."""
    body = {"model_name": model_name, "observation": _to_plain(observation), "deterministic": deterministic}
    masks = {} if action_masks is None else {"action_masks": _to_plain(action_masks)}
    return Call("POST", "/inference", _as(Prediction), json=body | masks)


def predict_batch(
    model_name: str, observations: Sequence[Any], deterministic: bool, action_masks: Sequence[Any] | None
) -> Call[list[Prediction | ItemError]]:
    """Describe ``POST /inference/batch`` in JSON."""
    body = {"model_name": model_name, "observations": _to_plain(observations), "deterministic": deterministic}
    masks = {} if action_masks is None else {"action_masks": _to_plain(action_masks)}
    return Call("POST", "/inference/batch", _as_list("answers", parse_item), json=body | masks)


def predict_array(model_name: str, observations: "npt.NDArray[Any]", deterministic: bool) -> "Call[npt.NDArray[Any]]":
    """Describe ``POST /inference/batch`` as arrays."""
    import numpy as np  # which the other calls do without

    file = io.BytesIO()
    np.save(file, observations, allow_pickle=False)
    return Call(
        "POST",
        "/inference/batch",
        lambda response: np.load(io.BytesIO(response.content), allow_pickle=False),
        {"model_name": model_name, "deterministic": deterministic},
        content=file.getvalue(),
        headers={"Content-Type": _ARRAY_TYPE, "Accept": _ARRAY_TYPE},
    )


def list_models() -> Call[list[ModelSummary]]:
    """Describe ``GET /models``."""
    return Call("GET", "/models", _as_list("models", ModelSummary.parse))


def get_model(model_name: str) -> Call[ModelCard]:
    """Describe ``GET /models/{model_name}``."""
    return Call("GET", f"/models/{_quote(model_name)}", _as(ModelCard))


def delete_model(model_name: str) -> Call[Deleted]:
    """Describe ``DELETE /models/{model_name}``."""
    return Call("DELETE", f"/models/{_quote(model_name)}", _as(Deleted))


def evaluate(model_name: str, n_episodes: int, seed: int, deterministic: bool) -> Call[Comparison]:
    """Describe ``POST /models/{model_name}/evaluate``."""
    body = {"n_episodes": n_episodes, "seed": seed, "deterministic": deterministic}
    path = f"/models/{_quote(model_name)}/evaluate"
    return Call("POST", path, _as(Comparison), json=body, timeout_seconds=_PLAYING_SECONDS)


def film(model_name: str, video_format: str, seed: int, deterministic: bool, max_steps: int) -> Call[httpx2.Response]:
    """Describe ``GET /models/{model_name}/video``."""
    query = {"format": video_format, "seed": seed, "deterministic": deterministic, "max_steps": max_steps}
    return Call("GET", f"/models/{_quote(model_name)}/video", _as_is, query, timeout_seconds=_PLAYING_SECONDS)


def download(model_name: str) -> Call[httpx2.Response]:
    """Describe ``GET /models/{model_name}/file``."""
    return Call("GET", f"/models/{_quote(model_name)}/file", _as_is)


def upload(model_name: str, content: bytes, overwrite: bool) -> Call[ModelCard]:
    """Describe ``PUT /models/{model_name}/file``."""
    path, query = f"/models/{_quote(model_name)}/file", {"overwrite": overwrite}
    return Call("PUT", path, _as(ModelCard), query, content=content, headers={"Content-Type": "application/zip"})


def list_environments(search: str | None) -> Call[list[EnvironmentSummary]]:
    """Describe ``GET /environments``."""
    parse = _as_list("environments", EnvironmentSummary.parse)
    return Call("GET", "/environments", parse, _leave_out_none(search=search))


def get_environment(env_name: str) -> Call[Environment]:
    """Describe ``GET /environments/{env_name}``."""
    return Call("GET", f"/environments/{quote(env_name, safe='/')}", _as(Environment))


def list_reward_functions() -> Call[list[RewardFunction]]:
    """Describe ``GET /reward-functions``."""
    return Call("GET", "/reward-functions", _as_list("reward_functions", RewardFunction.parse))


def _to_plain(value: Any) -> Any:
    """Turn arrays and numbers of NumPy, or whatever else has ``tolist``, into what JSON can say."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
