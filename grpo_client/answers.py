"""What the server answers, as frozen dataclasses.

What a newer server says beyond these fields is kept in ``extra``; what an older one does not say yet is None or empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from grpo_client.errors import GRPOError, ServerUnreachable

FINAL_STATUSES = frozenset({"completed", "failed", "stopped"})
TERMINAL_EVENTS = frozenset(f"job.{status}" for status in FINAL_STATUSES)

Interval = tuple[float, float]


def _convert(kind: Any, value: Any) -> Any:
    """Make of JSON what a field's type says: times, answers within answers, tuples; all else stays as it is."""
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
    """A JSON object of the server.

    :param extra: What it says beyond the fields.
    """

    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    @cache
    def _get_kinds(cls) -> dict[str, Any]:
        """Return the types of the fields."""
        return {name: kind for name, kind in get_type_hints(cls).items() if name != "extra"}

    @classmethod
    def parse(cls, body: Any) -> Self:
        """Read a JSON object.

        :raises ServerUnreachable: If it is none that a GRPO server would send.
        """
        kinds = cls._get_kinds()
        try:
            known = {name: _convert(kind, body[name]) for name, kind in kinds.items() if name in body}
            return cls(**known, extra={name: value for name, value in body.items() if name not in kinds})
        except (TypeError, ValueError, AttributeError) as error:
            raise ServerUnreachable(
                f"the answer is no {cls.__name__} of a GRPO server; check the URL. {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can say of it, ``extra`` included."""
        return {**{name: _to_plain(getattr(self, name)) for name in self._get_kinds()}, **self.extra}


def _to_plain(value: Any) -> Any:
    if isinstance(value, Answer):
        return value.to_json()
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True, kw_only=True)
class ServerInfo(Answer):
    """What the server offers."""

    message: str
    version: str
    endpoints: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Health(Answer):
    """That the server lives, and what it holds."""

    status: str
    timestamp: datetime
    active_jobs: int
    loaded_models: int


@dataclass(frozen=True, kw_only=True)
class JobSummary(Answer):
    """One line of the job list."""

    job_id: str
    status: str
    progress: float
    env_name: str | None = None
    model_name: str | None = None
    current_timesteps: int | None = None
    total_timesteps: int | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict(Answer):
    """Whether a job is learning, in a word and in a sentence."""

    state: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Evaluation(Answer):
    """What some whole episodes say of a policy. Rewards are the environment's own.

    :param timesteps: Simulator steps trained until then; None outside a job.
    """

    n_episodes: int
    mean_reward: float
    std_reward: float
    mean_reward_ci95: Interval | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    mean_length: float | None = None
    success_rate: float | None = None
    success_rate_ci95: Interval | None = None
    timesteps: int | None = None
    elapsed_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingStatus(Answer):
    """Where a job is. Times are UTC.

    :param metrics: Stable-Baselines3's log keys as of the latest rollout.
    :param model_name: Where the policy is kept; None as long as there is none.
    """

    job_id: str
    status: str
    progress: float
    current_timesteps: int
    total_timesteps: int
    created_at: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    error_message: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    model_name: str | None = None
    sha256: str | None = None
    elapsed_seconds: float | None = None
    eta_seconds: float | None = None
    verdict: Verdict | None = None
    evaluation: Evaluation | None = None
    best_evaluation: Evaluation | None = None
    ended_by: str | None = None
    tensorboard_run: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether it can no longer change."""
        return self.status in FINAL_STATUSES


@dataclass(frozen=True, kw_only=True)
class Submission(Answer):
    """A job was accepted.

    :param config: The request with every default filled in; sent again, it repeats the job.
    """

    job_id: str
    message: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stopped(Answer):
    """A job was told to stop."""

    job_id: str
    message: str


@dataclass(frozen=True, kw_only=True)
class MetricRow(Answer):
    """What one rollout and the update before it measured."""

    timesteps: int
    elapsed_seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class MetricHistory(Answer):
    """What a job has measured over time, oldest first."""

    job_id: str
    keys: tuple[str, ...]
    rows: tuple[MetricRow, ...]
    evaluations: tuple[Evaluation, ...] = ()


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job.

    :param event_id: Rises from event to event.
    :param name: Such as ``job.metrics``; the last one is ``job.completed``, ``job.failed`` or ``job.stopped``.
    :param payload: JSON.
    """

    event_id: int
    name: str
    payload: Mapping[str, Any]

    @property
    def is_terminal(self) -> bool:
        """Whether nothing comes after it."""
        return self.name in TERMINAL_EVENTS

    @property
    def final_status(self) -> TrainingStatus:
        """The job's status, which the last event carries.

        :raises GRPOError: If it is another event.
        """
        if not self.is_terminal:
            raise GRPOError(f"{self.name} is not the last event of a job, and carries no status; wait for that one.")
        return TrainingStatus.parse(self.payload)


@dataclass(frozen=True, kw_only=True)
class Prediction(Answer):
    """What to do in one state.

    :param action: An integer for Discrete actions, a list for all others.
    :param action_probs: Probability of every discrete action; None for continuous ones.
    :param value: Estimate of the discounted return from here.
    """

    action: Any
    action_probs: Any = None
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class ItemError(Answer):
    """An observation of a batch that was not answered."""

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
class ModelCard(Answer):
    """What a model's file says of it."""

    name: str
    status: str
    n_bytes: int | None = None
    sha256: str | None = None
    modified_at: datetime | None = None
    env_name: str | None = None
    observation_space: Mapping[str, Any] | None = None
    action_space: Mapping[str, Any] | None = None
    reward_function: str | list[str] | None = None
    hyperparameters: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    network: Mapping[str, Any] | None = None
    num_timesteps: int | None = None
    n_updates: int | None = None
    n_parameters: int | None = None
    normalization: Mapping[str, Any] | None = None
    evaluation: Evaluation | None = None
    versions: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison(Answer):
    """Episodes of a policy beside the same ones played at random.

    :param better_than_random: Whether the 95 % intervals of the mean rewards do not overlap.
    """

    model_name: str
    env_name: str
    seed: int
    deterministic: bool
    evaluation: Evaluation
    random: Evaluation
    better_than_random: bool
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Video(Answer):
    """A film that was saved.

    :param reward: Of the episode that it shows.
    :param n_steps: Its length.
    """

    path: Path
    n_bytes: int
    reward: float | None = None
    n_steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Deleted(Answer):
    """A model was removed."""

    model_name: str
    message: str


@dataclass(frozen=True, kw_only=True)
class EnvironmentSummary(Answer):
    """One line of the environment list."""

    env_name: str
    max_episode_steps: int | None = None
    reward_threshold: float | None = None
    has_preset: bool | None = None
    is_latest: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Environment(Answer):
    """What can be trained in.

    :param restorable: Whether groups can start from states on the way; ``obstacle`` says why not.
    """

    env_name: str
    observation_space: Mapping[str, Any] | None = None
    action_space: Mapping[str, Any] | None = None
    restorable: bool | None = None
    obstacle: str | None = None
    group_mode: str | None = None
    max_episode_steps: int | None = None
    reward_threshold: float | None = None
    preset: Mapping[str, Any] | None = None
    default_reward_function: str | None = None
    reward_functions: tuple[str, ...] = ()
    render_modes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RewardFunction(Answer):
    """What can be trained on.

    :param environments: Where it makes sense; None for everywhere.
    """

    name: str
    description: str | None = None
    environments: tuple[str, ...] | None = None
