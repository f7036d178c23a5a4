"""The server's answers as frozen dataclasses, and how they are read."""

import io
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Self, Union, get_args, get_origin, get_type_hints

import httpx2

from grpo_client.errors import GRPOError, MissingPackage, ServerUnreachable

if TYPE_CHECKING:
    import numpy.typing as npt

FINAL_STATUSES = frozenset({"completed", "failed", "stopped"})
TERMINAL_EVENTS = frozenset(f"job.{status}" for status in FINAL_STATUSES)

Interval = tuple[float, float]


def read_json(response: httpx2.Response) -> Any:
    """Read a body as JSON.

    :raises ServerUnreachable: If it is something else.
    """
    try:
        return response.json()
    except ValueError as error:
        raise ServerUnreachable(
            f"the answer of {response.url} is not JSON, so this is not a GRPO server; check the URL."
        ) from error


def read_list(response: httpx2.Response, key: str) -> list[Any]:
    """Read the list under a key of a JSON object.

    :raises ServerUnreachable: If there is none.
    """
    body = read_json(response)
    if not isinstance(body, dict) or not isinstance(body.get(key), list):
        raise ServerUnreachable(f"the answer has no list '{key}', so this is not a GRPO server; check the URL.")
    items: list[Any] = body[key]
    return items


def import_numpy() -> Any:
    """Import NumPy, which only arrays need.

    :raises MissingPackage: If it is not installed.
    """
    try:
        import numpy
    except ImportError as error:
        raise MissingPackage("predict_array needs NumPy: pip install numpy, or use predict_batch.") from error
    return numpy


def read_array(response: httpx2.Response) -> "npt.NDArray[Any]":
    """Read an array.

    :raises ServerUnreachable: If the answer holds none.
    """
    try:
        actions: npt.NDArray[Any] = import_numpy().load(io.BytesIO(response.content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ServerUnreachable("the answer is no array, so this is not a GRPO server; check the URL.") from error
    return actions


def to_plain(value: Any) -> Any:
    """Turn arrays, answers, times and paths into what JSON can express; leave everything else as it is."""
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        return value.tolist()
    if isinstance(value, Answer):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def _convert(kind: Any, value: Any) -> Any:
    """Convert JSON to the type of a field: times, nested answers and tuples; everything else stays as it is."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None:
        return None
    if datetime in kinds:
        return datetime.fromisoformat(value)
    for one in kinds:
        if isinstance(one, type) and issubclass(one, Answer):
            return one.parse(value)
        if get_origin(one) is tuple:
            return tuple(_convert(get_args(one)[0], item) for item in value)
    return value


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A JSON object of the server."""

    @classmethod
    @cache
    def _get_kinds(cls) -> dict[str, Any]:
        return get_type_hints(cls)

    @classmethod
    def parse(cls, body: Any) -> Self:
        """Read a JSON object; fields that this class does not have are ignored.

        :raises ServerUnreachable: If a GRPO server would not send it.
        """
        try:
            return cls(**{name: _convert(kind, body[name]) for name, kind in cls._get_kinds().items() if name in body})
        except (TypeError, ValueError, AttributeError) as error:
            raise ServerUnreachable(
                f"the answer is not a {cls.__name__} of a GRPO server; check the URL. {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``parse`` reads."""
        return {name: to_plain(getattr(self, name)) for name in self._get_kinds()}


@dataclass(frozen=True, kw_only=True)
class ServerInfo(Answer):
    """The server's version and endpoints."""

    message: str
    version: str
    endpoints: Mapping[str, str]
    dashboard: str | None = None
    docs: str | None = None


@dataclass(frozen=True, kw_only=True)
class Health(Answer):
    """Proof that the server is alive, and how many jobs and models it holds."""

    status: str
    timestamp: datetime
    active_jobs: int
    loaded_models: int
    role: str = "all"


@dataclass(frozen=True, kw_only=True)
class JobSummary(Answer):
    """One line of the job list."""

    job_id: str
    status: str
    progress: float
    env_name: str
    model_name: str
    current_timesteps: int
    total_timesteps: int
    created_at: datetime
    elapsed_seconds: float = 0.0
    seed: int = 0
    mean_reward: float | None = None
    mean_reward_ci95: Interval | None = None
    recipe: str = ""
    display_name: str | None = None
    tags: tuple[str, ...] = ()
    note: str = ""
    hidden: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict(Answer):
    """Whether a job is learning, in a word and in a sentence."""

    state: str
    text: str


@dataclass(frozen=True, kw_only=True)
class EpisodeFigures(Answer):
    """Statistics of whole episodes. Rewards are the environment's own.

    :param mean_length: Steps per episode.
    """

    n_episodes: int
    mean_reward: float
    std_reward: float
    mean_reward_ci95: Interval | None
    min_reward: float
    max_reward: float
    mean_length: float
    success_rate: float | None
    success_rate_ci95: Interval | None


@dataclass(frozen=True, kw_only=True)
class Evaluation(EpisodeFigures):
    """An evaluation of a policy.

    :param timesteps: Simulator steps trained until then; None outside a job.
    :param elapsed_seconds: Time since the job was started; None outside a job.
    """

    timesteps: int | None = None
    elapsed_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class FinalEvaluation(EpisodeFigures):
    """The evaluation with which a job ends: that of the policy it saves.

    :param timesteps: Simulator steps that the policy had been trained for.
    :param seconds: How long it took; None on a model card.
    :param complete: False if time ran out before all episodes were played.
    """

    timesteps: int
    complete: bool
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Answer):
    """A job's latest checkpoint, from which ``resume`` goes on.

    :param exact: Whether training goes on to the same weights as without an interruption; None where that depends on
        the environment.
    :param note: What keeps it from that, or may.
    """

    timesteps: int
    created_at: datetime
    exact: bool | None
    note: str | None


@dataclass(frozen=True, kw_only=True)
class TrainingStatus(Answer):
    """The status of a job. Times are UTC.

    :param progress: From 0 to 1.
    :param metrics: Stable-Baselines3's log keys as of the latest rollout.
    :param model_name: Name of the saved policy; None until there is one.
    :param final_evaluation: What the saved policy earns; None until the job has ended, and if that is unknown.
    :param config_origins: Who chose each field of ``config``: ``"request"``, ``"preset"`` or ``"default"``.
    """

    job_id: str
    status: str
    progress: float
    current_timesteps: int
    total_timesteps: int
    created_at: datetime
    start_time: datetime | None
    end_time: datetime | None
    error_message: str | None
    metrics: Mapping[str, float]
    warnings: tuple[str, ...]
    model_name: str | None
    sha256: str | None
    elapsed_seconds: float
    eta_seconds: float | None
    verdict: Verdict
    evaluation: Evaluation | None
    best_evaluation: Evaluation | None
    final_evaluation: FinalEvaluation | None
    ended_by: str | None
    checkpoint: Checkpoint | None = None
    n_restarts: int = 0
    tensorboard_run: str | None
    sweep_id: str | None = None
    config: Mapping[str, Any]
    config_origins: Mapping[str, str]
    display_name: str | None = None
    tags: tuple[str, ...] = ()
    note: str = ""
    hidden: bool = False

    def __str__(self) -> str:
        from grpo_client.reports import clean, describe_status  # which describes these classes

        return clean(describe_status(self))

    @property
    def is_final(self) -> bool:
        """Whether it can no longer change."""
        return self.status in FINAL_STATUSES


@dataclass(frozen=True, kw_only=True)
class Submission(Answer):
    """Confirmation that a job was accepted.

    :param config: The request with every default filled in; sent again, it repeats the job.
    :param config_origins: Who chose each field of it: ``"request"``, ``"preset"`` or ``"default"``.
    """

    job_id: str
    message: str
    config: Mapping[str, Any]
    config_origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Forgotten(Answer):
    """Confirmation that a job was deleted."""

    job_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Stopped(Answer):
    """Confirmation that a job was told to stop."""

    job_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Resumed(Answer):
    """Confirmation that a job goes on.

    :param timesteps: Simulator steps that it goes on from; 0 begins again.
    """

    job_id: str
    message: str
    timesteps: int
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MetricRow(Answer):
    """Metrics of one rollout and the update before it."""

    timesteps: int
    elapsed_seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class MetricHistory(Answer):
    """Metrics of a job over time, oldest first."""

    job_id: str
    keys: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    evaluations: tuple[Evaluation, ...]
    final_evaluation: FinalEvaluation | None = None


@dataclass(frozen=True)
class JobEvent:
    """An event of a job.

    :param event_id: Rises from event to event.
    :param name: Such as ``job.metrics``; the last one is ``job.completed``, ``job.failed`` or ``job.stopped``.
    :param payload: A JSON object.
    """

    event_id: int
    name: str
    payload: Mapping[str, Any]

    @property
    def is_terminal(self) -> bool:
        """Whether it is the last one."""
        return self.name in TERMINAL_EVENTS

    @property
    def final_status(self) -> TrainingStatus:
        """The job's status, which the last event carries.

        :raises GRPOError: If it is another event.
        """
        if not self.is_terminal:
            raise GRPOError(f"{self.name} is not the last event of a job and carries no status; wait for the last one.")
        return TrainingStatus.parse(self.payload)


Events = Generator[JobEvent, None, None]
AsyncEvents = AsyncGenerator[JobEvent, None]


def read_event(received: httpx2.ServerSentEvent) -> JobEvent:
    """Read an event of a stream.

    :raises GRPOError: If its id is not a number or its payload not JSON.
    """
    try:
        payload = received.json()
        event_id = int(received.id)
    except ValueError as error:
        raise GRPOError(f"the event {received.event!r} with the id {received.id!r} cannot be read.") from error
    return JobEvent(event_id, received.event, payload if isinstance(payload, dict) else {})


@dataclass(frozen=True, kw_only=True)
class Prediction(Answer):
    """A policy's answer to one observation.

    :param action: An integer for Discrete actions, a list for all others.
    :param action_probs: Probability of every discrete action; None for continuous ones.
    :param value: Estimate of the discounted return from here; None where the model's card does not call it meaningful.
    """

    action: Any
    action_probs: Any
    value: float | None


@dataclass(frozen=True, kw_only=True)
class ItemError(Answer):
    """Why one observation of a batch was not answered."""

    error: str


def parse_item(body: Any) -> Prediction | ItemError:
    """Read one answer of a batch."""
    return ItemError.parse(body) if isinstance(body, dict) and "error" in body else Prediction.parse(body)


@dataclass(frozen=True, kw_only=True)
class ModelSummary(Answer):
    """One line of the model list."""

    name: str
    status: str


@dataclass(frozen=True, kw_only=True)
class ValueCheck(Answer):
    """How well a model's values agree with what followed, in episodes that they were not fitted to.

    :param is_meaningful: Whether a prediction has a value at all.
    :param gamma: Discount factor of the returns, in [0, 1].
    :param n_states: States compared.
    :param correlation: Of values and returns, in [-1, 1]; None where either do not differ.
    :param error: Mean size of the error, in shares of the mean size of the return.
    :param spread: Standard deviation of the returns, in the same shares.
    """

    is_meaningful: bool
    gamma: float
    n_states: int
    correlation: float | None
    error: float | None
    spread: float | None


@dataclass(frozen=True, kw_only=True)
class ModelCard(Answer):
    """The contents of a model's file, without its arrays; None for each fact that it lacks."""

    name: str
    status: str
    n_bytes: int
    sha256: str | None
    modified_at: datetime
    env_name: str | None
    env_kwargs: Mapping[str, Any] | None
    wrappers: tuple[Mapping[str, Any], ...] | None
    observation_space: Mapping[str, Any] | None
    action_space: Mapping[str, Any] | None
    reward_function: str | list[str] | None
    hyperparameters: Mapping[str, Any] | None
    config: Mapping[str, Any] | None
    network: Mapping[str, Any] | None
    num_timesteps: int | None
    n_updates: int | None
    n_parameters: int | None
    normalization: Mapping[str, Any] | None
    evaluation: Evaluation | None
    value_check: ValueCheck | None
    final_evaluation: FinalEvaluation | None
    versions: Mapping[str, str] | None
    lineage: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison(Answer):
    """Evaluations of a policy and of random actions on the same seeds.

    :param better_than_random: Whether the policy's 95 % interval lies above that of random actions.
    :param seconds: How long the episodes took.
    """

    model_name: str
    env_name: str
    seed: int
    deterministic: bool
    evaluation: Evaluation
    random: Evaluation
    better_than_random: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Video(Answer):
    """A saved film.

    :param reward: Sum of the episode's rewards.
    :param n_steps: Length of the episode.
    """

    path: Path
    n_bytes: int
    reward: float
    n_steps: int


@dataclass(frozen=True, kw_only=True)
class Deleted(Answer):
    """Confirmation that a model was removed."""

    model_name: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ModelVersion(Answer):
    """One version of a model, and who made it from what.

    :param is_newest: Whether the plain name means it.
    :param job_id: The job that trained it; None if it was uploaded.
    :param lineage: The model it was trained on from, if any.
    """

    version: int
    is_newest: bool
    aliases: tuple[str, ...]
    status: str
    n_bytes: int
    sha256: str | None
    created_at: datetime
    job_id: str | None
    env_name: str | None
    num_timesteps: int | None
    lineage: Mapping[str, Any] | None
    evaluation: Evaluation | None


@dataclass(frozen=True, kw_only=True)
class ModelVersions(Answer):
    """The versions of a model, the newest first, and its aliases: versions by alias."""

    model_name: str
    versions: tuple[ModelVersion, ...]
    aliases: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Alias(Answer):
    """An alias of a model.

    :param version: The version that it points at; None if it was deleted.
    :param previous_version: The one that it pointed at before, if any.
    """

    model_name: str
    alias: str
    version: int | None
    previous_version: int | None


@dataclass(frozen=True, kw_only=True)
class RolledBack(Answer):
    """Confirmation that an earlier version is the newest again.

    :param version: Number of the newest version now.
    :param restored_version: The version whose file it has.
    """

    model_name: str
    message: str
    version: int
    restored_version: int


@dataclass(frozen=True, kw_only=True)
class EnvironmentSummary(Answer):
    """One line of the environment list."""

    env_name: str
    max_episode_steps: int | None
    reward_threshold: float | None
    has_preset: bool
    is_latest: bool


@dataclass(frozen=True, kw_only=True)
class Environment(Answer):
    """An environment: its spaces, its limits and what jobs can do in it.

    :param restorable: Whether groups can start from states in the middle of an episode.
    :param obstacle: Why they cannot, or why no job can train in it.
    :param env_kwargs: The arguments that its constructor takes, with their defaults; None if it takes any.
    :param wrappers: Wrappers that make it fit, where its spaces do not.
    """

    env_name: str
    observation_space: Mapping[str, Any]
    action_space: Mapping[str, Any]
    restorable: bool
    obstacle: str | None
    group_mode: str | None
    max_episode_steps: int | None
    reward_threshold: float | None
    env_kwargs: Mapping[str, Any] | None
    wrappers: tuple[Mapping[str, Any], ...]
    preset_name: str | None
    preset: Mapping[str, Any] | None
    default_reward_function: str
    reward_functions: tuple[str, ...]
    render_modes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RewardFunction(Answer):
    """A reward function that a job can name.

    :param environments: The environments that it understands; None for all.
    """

    name: str
    description: str | None
    environments: tuple[str, ...] | None
