"""The status of jobs, their metrics, and evaluations of their policies."""

import re
import unicodedata
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from service.schemas.fields import TAG_PATTERN, Request
from service.schemas.training import ConfigOrigins, TrainConfig

EndedBy = Literal["total_timesteps", "stop_reward", "patience", "max_seconds", "stop", "shutdown", "restart"]
# They join or part the characters beside them: those of an emoji of several parts, and of Persian and Indic words.
_JOINERS = "\u200c\u200d"
# They choose how the character before them looks: as an emoji or a sign, or which form of a letter it is.
_SELECTORS = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
# The other characters that Python takes for printable, and fonts leave out or blank: those that Unicode calls
# Default_Ignorable_Code_Point, and the empty pattern of Braille.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]")
VerdictState = Literal["waiting", "starting", "learning", "solved", "steady", "flat", "worse", "no_signal", "failed"]


class JobStatus(StrEnum):
    """The status of a training job; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether the status can no longer change."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


Interval95 = tuple[float, float] | None


class EpisodeFigures(BaseModel):
    """Statistics of a policy's whole episodes. Rewards are the environment's own."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    n_episodes: int = Field(ge=1)
    mean_reward: float = Field(description="Mean total reward of an episode.")
    std_reward: float = Field(ge=0, description="Standard deviation of the total rewards.")
    mean_reward_ci95: tuple[float, float] | None = Field(
        description="95 % confidence interval of the mean; null for a single episode."
    )
    min_reward: float
    max_reward: float
    mean_length: float = Field(ge=0, description="Mean number of steps per episode.")
    success_rate: float | None = Field(ge=0, le=1, description="Null if the environment does not define success.")
    success_rate_ci95: tuple[float, float] | None


class EvaluationRow(EpisodeFigures):
    """An evaluation of a job's policy during training."""

    timesteps: int = Field(description="Simulator steps that the policy had been trained for.")
    elapsed_seconds: float = Field(description="Time since the job started.")


class FinalEvaluation(EpisodeFigures):
    """The evaluation with which a job ends: that of the policy it saves."""

    timesteps: int = Field(ge=0, description="Simulator steps that the policy had been trained for.")
    seconds: float | None = Field(None, ge=0, description="Time that the evaluation took; null on a model card.")
    complete: bool = Field(description="False if time ran out before all episodes were played.")


class JobCheckpoint(BaseModel):
    """A job's latest checkpoint, from which `POST /training/{job_id}/resume` goes on."""

    timesteps: int = Field(ge=0, description="Simulator steps that were taken by then.")
    created_at: datetime
    exact: bool | None = Field(
        description="Whether training goes on to the same weights as without an interruption; null where that depends "
        "on the environment."
    )
    note: str | None = Field(description="What keeps it from that, or may.")


class Verdict(BaseModel):
    """Whether a job is learning, in one word and in plain language."""

    state: VerdictState
    text: str = Field(description="The meaning of the state and, if something can be done, what to try.")


def _check_line(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise ValueError("it has a line break; write it in one line")
    if all(character.isspace() or not _is_visible(character) for character in text):
        raise ValueError("it has no character that can be seen; write some")
    _check_visible(text)
    return text


def _compose(text: Any) -> Any:
    """Write letters with their accents as one character, as most systems do, before characters are counted."""
    return unicodedata.normalize("NFC", text) if isinstance(text, str) else text


def _unify_line_breaks(text: Any) -> Any:
    """Take the line breaks of Windows for one character, before characters are counted."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if isinstance(text, str) else text


def fold_text(text: str) -> str:
    """Return a text as it is compared with what people type: in any case, however its characters are composed."""
    return unicodedata.normalize("NFKC", text).casefold()


def _check_lines(text: str) -> str:
    _check_visible(text.replace("\n", "").replace("\t", ""))
    return text


def _check_visible(text: str) -> None:
    """Refuse control characters and those that turn the direction of a text or hide in it; spaces may be any."""
    for before, character in pairwise(["", *text]):
        if _SELECTORS.match(character):
            is_fine = _is_visible(before)
        elif character in _JOINERS:
            is_fine = _is_visible(before) or _SELECTORS.match(before) is not None
        else:
            is_fine = _is_visible(character) or unicodedata.category(character) == "Zs"
        if not is_fine:
            name = unicodedata.name(character, "")
            what = f"U+{ord(character):04X}" + (f" ({name})" if name else "")
            raise ValueError(f"it has the character {what}, which cannot be seen; leave it out")


def _is_visible(character: str) -> bool:
    is_left_out = _INVISIBLE.match(character) or _SELECTORS.match(character)
    return character.isprintable() and not character.isspace() and character != "" and not is_left_out


def _check_tags(tags: list[str]) -> list[str]:
    """Leave out tags that were given before, written alike."""
    return list({fold_text(tag): tag for tag in reversed(tags)}.values())[::-1]


DisplayName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
    BeforeValidator(_compose),
    AfterValidator(_check_line),
]
Tag = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=40, pattern=TAG_PATTERN),
    BeforeValidator(_compose),
    AfterValidator(_check_line),
]
Note = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=4000),
    BeforeValidator(_unify_line_breaks),
    BeforeValidator(_compose),
    AfterValidator(_check_lines),
]
Tags = Annotated[list[Tag], Field(max_length=16), AfterValidator(_check_tags)]


class JobLabels(BaseModel):
    """What people have written on a job."""

    model_config = ConfigDict(frozen=True)

    display_name: str | None = Field(None, description="What the job is called in lists; null shows `model_name`.")
    tags: list[str] = Field([], description="Words to find it by.")
    note: str = Field("", description="Anything worth remembering of it.")
    hidden: bool = Field(False, description="Whether the dashboard leaves it out of its table.")


class LabelRequest(Request):
    """What to write on a job; fields that are left out stay as they are."""

    display_name: DisplayName | None = Field(None, description="What to call it in lists; null takes the name away.")
    tags: Tags | None = Field(None, description="Words to find it by, in place of those it has; null takes them away.")
    note: Note | None = Field(None, description="Anything worth remembering of it; null takes the note away.")
    hidden: bool | None = Field(None, description="Whether the dashboard leaves it out of its table; null shows it.")


class TrainingStatus(JobLabels):
    """The status of a job. Times are UTC."""

    job_id: str
    status: JobStatus
    progress: float = Field(ge=0, le=1)
    current_timesteps: int
    total_timesteps: int
    created_at: datetime
    start_time: datetime | None = Field(description="Null while the job is queued.")
    end_time: datetime | None
    error_message: str | None
    metrics: dict[str, float] = Field(description="Stable-Baselines3's log keys, as of the latest rollout.")
    warnings: list[str]
    model_name: str | None = Field(description="Name of the saved policy; null until it is saved.")
    sha256: str | None = Field(description="SHA-256 of the model file.")
    elapsed_seconds: float = Field(description="Time since the job started; 0 while it is queued.")
    eta_seconds: float | None = Field(description="Estimated time left; null if unknown.")
    verdict: Verdict
    evaluation: EvaluationRow | None = Field(description="The latest evaluation.")
    best_evaluation: EvaluationRow | None = Field(description="The evaluation with the highest mean reward.")
    final_evaluation: FinalEvaluation | None = Field(
        description="What the saved policy earns; null until the job has ended, and if it could not be evaluated."
    )
    ended_by: EndedBy | None = Field(
        description="Why the training ended; null until then, and if it failed while the server ran."
    )
    checkpoint: JobCheckpoint | None = Field(None, description="Null before the first one.")
    n_restarts: int = Field(0, ge=0, description="How often it went on from a checkpoint, or from the start, again.")
    tensorboard_run: str | None = Field(description="Name of the TensorBoard run; null unless one was requested.")
    sweep_id: str | None = Field(None, description="The sweep that it belongs to; null if it was started by itself.")
    config: TrainConfig
    config_origins: ConfigOrigins


class JobSummary(BaseModel):
    """One line of the job list."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    status: JobStatus
    progress: float
    env_name: str
    model_name: str = Field(description="The requested name.")
    current_timesteps: int
    total_timesteps: int
    created_at: AwareDatetime
    elapsed_seconds: float = Field(0.0, description="Time since the job started; 0 while it is queued.")
    seed: int = 0
    mean_reward: float | None = Field(
        None, description="Mean reward of the final evaluation, or else of the latest one; null before the first."
    )
    mean_reward_ci95: tuple[float, float] | None = Field(None, description="Its 95 % confidence interval.")
    success_rate: float | None = Field(None, description="Of the same evaluation; null where nothing defines success.")
    recipe: str = Field("", description="The same for jobs whose settings differ in nothing but the seed and the name.")
    display_name: str | None = None
    tags: list[str] = []
    note: str = ""
    hidden: bool = False


JobSort = Literal[
    "created_at",
    "-created_at",
    "env_name",
    "-env_name",
    "status",
    "-status",
    "mean_reward",
    "-mean_reward",
    "current_timesteps",
    "-current_timesteps",
    "elapsed_seconds",
    "-elapsed_seconds",
    "seed",
    "-seed",
    "name",
    "-name",
]


class JobList(BaseModel):
    """The jobs that the server remembers, or those of them that were asked for."""

    jobs: list[JobSummary]


class HistoryRow(BaseModel):
    """Metrics of one rollout and the update before it."""

    timesteps: int
    elapsed_seconds: float
    metrics: dict[str, float]


class JobMetrics(BaseModel):
    """A job's metrics over time."""

    job_id: str
    keys: list[str] = Field(description="All keys of the rows' metrics, sorted.")
    rows: list[HistoryRow] = Field(description="Oldest first; for a long job, every second, fourth, ... row.")
    evaluations: list[EvaluationRow]
    final_evaluation: FinalEvaluation | None = Field(
        None, description="That of the policy that was saved; null until it is there, and where there is none."
    )


class ResumeResponse(BaseModel):
    """Confirms that a job goes on."""

    message: str
    job_id: str
    timesteps: int = Field(ge=0, description="Simulator steps that it goes on from; 0 begins again.")
    config: TrainConfig


class JobDeleteResponse(BaseModel):
    """Confirms that a job was forgotten."""

    message: str
    job_id: str


class StopResponse(BaseModel):
    """Confirms that a job was told to stop."""

    message: str
    job_id: str
