"""The server's answers as frozen dataclasses by topic, and how they are read."""

from grpo_client.answers.environments import Environment, EnvironmentSummary, RewardFunction
from grpo_client.answers.evaluations import Comparison, EpisodeFigures, Evaluation, FinalEvaluation, ValueCheck
from grpo_client.answers.events import AsyncEvents, Events, JobEvent, make_last_event, read_event
from grpo_client.answers.jobs import (
    Checkpoint,
    Forgotten,
    JobSummary,
    MetricHistory,
    MetricRow,
    Resumed,
    Stopped,
    Submission,
    TrainingStatus,
    Verdict,
)
from grpo_client.answers.models import (
    Alias,
    Deleted,
    ModelCard,
    ModelSummary,
    ModelVersion,
    ModelVersions,
    RolledBack,
    Video,
)
from grpo_client.answers.predictions import ItemError, Prediction, parse_item
from grpo_client.answers.reading import Answer, check_type, import_numpy, read_array, read_json, read_list, to_plain
from grpo_client.answers.server import Health, ServerInfo
from grpo_client.answers.sweeps import BestSetting, SettingRow, Sweep, SweepChanged, SweepStarted, SweepSummary, Trial

__all__ = [
    "Alias",
    "Answer",
    "AsyncEvents",
    "BestSetting",
    "Checkpoint",
    "Comparison",
    "Deleted",
    "Environment",
    "EnvironmentSummary",
    "EpisodeFigures",
    "Evaluation",
    "Events",
    "FinalEvaluation",
    "Forgotten",
    "Health",
    "ItemError",
    "JobEvent",
    "JobSummary",
    "MetricHistory",
    "MetricRow",
    "ModelCard",
    "ModelSummary",
    "ModelVersion",
    "ModelVersions",
    "Prediction",
    "Resumed",
    "RewardFunction",
    "RolledBack",
    "ServerInfo",
    "SettingRow",
    "Stopped",
    "Submission",
    "Sweep",
    "SweepChanged",
    "SweepStarted",
    "SweepSummary",
    "TrainingStatus",
    "Trial",
    "ValueCheck",
    "Verdict",
    "Video",
    "check_type",
    "import_numpy",
    "make_last_event",
    "parse_item",
    "read_array",
    "read_event",
    "read_json",
    "read_list",
    "to_plain",
]
