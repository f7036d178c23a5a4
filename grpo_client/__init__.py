"""The client of the GRPO server: ``Client`` blocks, ``AsyncClient`` awaits, ``python -m grpo_client`` is a command.

It imports neither the library nor the server, and so not torch.
"""

from grpo_client.answers.environments import Environment, EnvironmentSummary, RewardFunction
from grpo_client.answers.evaluations import Comparison, EpisodeFigures, Evaluation, FinalEvaluation, ValueCheck
from grpo_client.answers.events import JobEvent
from grpo_client.answers.jobs import Forgotten, JobSummary, MetricHistory, MetricRow, Stopped, TrainingStatus, Verdict
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
from grpo_client.answers.predictions import ItemError, Prediction
from grpo_client.answers.server import Health, ServerInfo
from grpo_client.answers.sweeps import BestSetting, SettingRow, Sweep, SweepStarted, SweepSummary, Trial
from grpo_client.async_client import AsyncClient, AsyncJob
from grpo_client.client import Client, Job
from grpo_client.errors import (
    ApiError,
    Busy,
    Conflict,
    FileProblem,
    GRPOError,
    InvalidArgument,
    InvalidRequest,
    JobFailed,
    JobTimeout,
    MissingPackage,
    NotFound,
    ServerUnreachable,
)

__all__ = [
    "Alias",
    "ApiError",
    "AsyncClient",
    "AsyncJob",
    "BestSetting",
    "Busy",
    "Client",
    "Comparison",
    "Conflict",
    "Deleted",
    "Environment",
    "EnvironmentSummary",
    "EpisodeFigures",
    "Evaluation",
    "FileProblem",
    "FinalEvaluation",
    "Forgotten",
    "GRPOError",
    "Health",
    "InvalidArgument",
    "InvalidRequest",
    "ItemError",
    "Job",
    "JobEvent",
    "JobFailed",
    "JobSummary",
    "JobTimeout",
    "MetricHistory",
    "MetricRow",
    "MissingPackage",
    "ModelCard",
    "ModelSummary",
    "ModelVersion",
    "ModelVersions",
    "NotFound",
    "Prediction",
    "RewardFunction",
    "RolledBack",
    "ServerInfo",
    "ServerUnreachable",
    "SettingRow",
    "Stopped",
    "Sweep",
    "SweepStarted",
    "SweepSummary",
    "TrainingStatus",
    "Trial",
    "ValueCheck",
    "Verdict",
    "Video",
]
