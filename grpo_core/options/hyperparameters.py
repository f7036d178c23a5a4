"""The one table of hyperparameters.

A row is one annotation, ``name: Annotated[type, Row(default, group, meaning, ...)]``. The rows determine the checks,
what a model file keeps, the fields of a training request and a job's configuration, the options of the command line,
the form that starts a job, and the tables of docs/arguments.md and API.md. Tests compare ``GRPO``'s signature and
docstring with them.

Nothing here imports torch, since the server reads the table too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from grpo_core.options.choices import (
    AdvantageScaling,
    AnchorSelection,
    Baseline,
    GroupMode,
    ImportanceLevel,
    LossNormalization,
    LossType,
    Supervision,
)

Group = Literal["Groups and rollouts", "Credit", "Optimisation", "Loss"]


@dataclass(frozen=True)
class Row:
    """One hyperparameter.

    :param default: The default value.
    :param group: Heading under which forms and tables list it.
    :param meaning: One line, a phrase without a full stop.
    :param title: Label in a form; by default the name in words.
    :param at_least: Smallest allowed number.
    :param above: Exclusive lower bound, in place of ``at_least``.
    :param at_most: Largest allowed number.
    :param request_least: Smallest number in a request to the server; by default ``at_least``.
    :param request_most: Largest number in a request to the server; by default ``at_most``.
    :param none_means: Meaning of None; empty if None is not allowed.
    :param is_schedule: Whether a function of the remaining progress is allowed instead of a number.
    :param name: Set from the annotation.
    :param annotation: The type, with its ``| None``; set from the annotation.
    """

    default: Any
    group: Group
    meaning: str
    title: str = ""
    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    request_least: float = -math.inf
    request_most: float = math.inf
    none_means: str = ""
    is_schedule: bool = False
    name: str = ""
    annotation: Any = None

    @property
    def kind(self) -> Any:
        """``int``, ``float``, ``bool`` or a ``Literal``: the type without None."""
        if get_origin(self.annotation) is Literal:
            return self.annotation
        return next((part for part in get_args(self.annotation) if part is not NoneType), self.annotation)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a ``Literal``; empty for other types."""
        return get_args(self.kind)


class SharedHyperparameters:
    """The hyperparameters that PPO has too."""

    learning_rate: Annotated[
        float,
        Row(
            3e-4,
            "Optimisation",
            "step size of Adam, at the start if it falls",
            above=0,
            request_most=1,
            is_schedule=True,
        ),
    ]
    n_steps: Annotated[
        int,
        Row(
            256,
            "Groups and rollouts",
            "simulator steps per environment and rollout, a multiple of `group_size * horizon`; in episodes a lower "
            "bound, since groups are completed",
            title="Steps per rollout",
            at_least=1,
            request_least=2,
            request_most=16_384,
        ),
    ]
    batch_size: Annotated[int, Row(64, "Optimisation", "steps per minibatch", at_least=1, request_most=65_536)]
    n_epochs: Annotated[
        int, Row(10, "Optimisation", "passes over each rollout", title="Epochs", at_least=1, request_most=100)
    ]
    gamma: Annotated[float, Row(0.99, "Credit", "discount factor", at_least=0, at_most=1)]
    gae_lambda: Annotated[
        float,
        Row(
            0.95,
            "Credit",
            "bias-variance trade-off of the lambda-returns, where values are bootstrapped",
            title="GAE lambda",
            at_least=0,
            at_most=1,
        ),
    ]
    clip_range: Annotated[
        float,
        Row(0.2, "Loss", "trust interval of the probability ratio", above=0, request_most=10, is_schedule=True),
    ]
    ent_coef: Annotated[
        float,
        Row(0.0, "Optimisation", "weight of the entropy bonus", title="Entropy bonus", at_least=0, request_most=10),
    ]
    vf_coef: Annotated[
        float,
        Row(
            0.5,
            "Optimisation",
            "weight of the value network's squared error",
            title="Value loss",
            at_least=0,
            request_most=100,
        ),
    ]
    max_grad_norm: Annotated[
        float,
        Row(
            0.5,
            "Optimisation",
            "largest gradient norm, for the policy and for the value network each",
            title="Largest gradient norm",
            at_least=0,
            request_most=1e6,
        ),
    ]
    target_kl: Annotated[
        float | None,
        Row(
            None,
            "Optimisation",
            "end the updates of a rollout once the approximate KL divergence exceeds 1.5 times this",
            title="Target KL",
            above=0,
            request_most=100,
            none_means="no limit",
        ),
    ]


class Hyperparameters(SharedHyperparameters):
    """All hyperparameters, in the order of ``GRPO``'s signature; those that PPO lacks are below."""

    group_mode: Annotated[
        Literal["auto", GroupMode],
        Row(
            "auto",
            "Groups and rollouts",
            "`branch`: groups start from states on the way. `action`: likewise, and every first action is tried. "
            "`episode`: whole episodes from one seeded reset. `auto`: `branch`, or `episode` where the environment "
            "cannot be restored",
        ),
    ]
    group_size: Annotated[
        int,
        Row(
            2,
            "Groups and rollouts",
            "branches of a group; with `action` as many as there are actions",
            at_least=2,
            request_most=256,
        ),
    ]
    horizon: Annotated[
        int | None,
        Row(
            None,
            "Groups and rollouts",
            "most simulator steps per branch",
            at_least=1,
            request_most=16_384,
            none_means="32, and in episodes a cap of 10,000",
        ),
    ]
    supervision: Annotated[
        Supervision,
        Row(
            "process",
            "Credit",
            "`process`: credit a step with what follows it. `outcome`: with what its whole branch earned",
        ),
    ]
    baseline: Annotated[
        Baseline,
        Row(
            "adaptive",
            "Credit",
            "what a step's return is compared with. `group`: the group's mean, as GRPO does. `leave_one_out`: the mean "
            "of the others. `residual`: GAE minus the group's mean GAE, with a value network. `adaptive`: GAE minus "
            "as much of the others' mean as rollouts show to help. `value`: GAE alone, as in PPO. For ablations: "
            "`timestep`, `batch`, `none`",
        ),
    ]
    advantage_scaling: Annotated[
        AdvantageScaling,
        Row(
            "batch",
            "Credit",
            "divide advantages by the standard deviation of the `group`, of the whole `batch`, or not: `none`",
        ),
    ]
    bootstrap_value: Annotated[
        bool, Row(True, "Credit", "credit a branch that was cut with the value network's estimate of the rest")
    ]
    vf_lr_factor: Annotated[
        float,
        Row(
            10.0,
            "Optimisation",
            "step size of the value network in multiples of `learning_rate`",
            title="Value learning rate factor",
            at_least=0,
            request_most=1000,
        ),
    ]
    restart_probability: Annotated[
        float,
        Row(
            0.0,
            "Groups and rollouts",
            "how often a group starts a new episode although the last one could go on",
            at_least=0,
            at_most=1,
        ),
    ]
    fill_rollouts: Annotated[
        bool,
        Row(
            False,
            "Groups and rollouts",
            "where branches end early, let groups from new episodes fill the rollout; otherwise it holds fewer steps",
        ),
    ]
    anchor_selection: Annotated[
        AnchorSelection,
        Row(
            "continue",
            "Groups and rollouts",
            "where groups start. `continue`: where a branch of the last group got to. `archive`: a share of them from "
            "earlier states whose groups still differed",
        ),
    ]
    common_random_numbers: Annotated[
        bool,
        Row(False, "Groups and rollouts", "let the members of a group meet the same noise of the environment"),
    ]
    antithetic_actions: Annotated[
        bool,
        Row(
            False,
            "Groups and rollouts",
            "draw opposite noise for the two branches of a pair; actions must be continuous",
            title="Opposite actions in pairs",
        ),
    ]
    filter_zero_std_groups: Annotated[
        bool,
        Row(
            False,
            "Groups and rollouts",
            "leave groups whose members all earned the same out of the policy's loss",
            title="Filter zero-std groups",
        ),
    ]
    clip_range_high: Annotated[
        float | None,
        Row(
            None,
            "Loss",
            "how far the probability ratio may rise above 1 (DAPO)",
            above=0,
            request_most=10,
            none_means="the same as `clip_range`",
            is_schedule=True,
        ),
    ]
    loss_type: Annotated[
        LossType,
        Row(
            "clip",
            "Loss",
            "`clip`: PPO's surrogate. `cispo`: the clipped ratio as a weight, which never drops a step's gradient",
        ),
    ]
    importance_level: Annotated[
        ImportanceLevel, Row("step", "Loss", "probability ratio of each `step`, or of its whole `branch` (GSPO)")
    ]
    loss_normalization: Annotated[
        LossNormalization,
        Row(
            "step",
            "Loss",
            "every `step` counts alike, or every `branch`, or the sum is divided by the constant `horizon` (Dr. GRPO)",
        ),
    ]
    kl_coef: Annotated[
        float,
        Row(
            0.0,
            "Loss",
            "weight of the KL divergence from the reference policy, the one that training began with",
            title="KL penalty",
            at_least=0,
            request_most=100,
        ),
    ]
    ref_sync_steps: Annotated[
        int | None,
        Row(
            None,
            "Loss",
            "simulator steps after which the policy becomes the reference anew; needs `kl_coef`",
            title="Reference renewed every",
            at_least=1,
            request_most=10_000_000,
            none_means="no renewal",
        ),
    ]
    n_rollout_workers: Annotated[
        int,
        Row(
            1,
            "Groups and rollouts",
            "processes that play rollouts, at most one per shard; more than one pays off where the simulator is slow",
            title="Rollout workers",
            at_least=1,
            request_most=64,
        ),
    ]
    n_rollout_shards: Annotated[
        int | None,
        Row(
            None,
            "Groups and rollouts",
            "parts that a rollout is cut into, each with random generators of its own: 1, or a multiple of `n_envs`. "
            "The policy depends on it, not on the number of workers",
            title="Rollout shards",
            at_least=1,
            request_most=1024,
            none_means="1 with one worker, else about 4, and in episodes one per environment",
        ),
    ]


def _read_rows(table: type[SharedHyperparameters]) -> Mapping[str, Row]:
    rows = {}
    for name, hint in get_type_hints(table, include_extras=True).items():
        annotation, row = get_args(hint)
        rows[name] = replace(
            row,
            name=name,
            annotation=annotation,
            title=row.title or name.replace("_", " ").capitalize(),
            request_least=max(row.at_least, row.request_least),
            request_most=min(row.at_most, row.request_most),
        )
    return rows


HYPERPARAMETERS = _read_rows(Hyperparameters)
_SHARED = _read_rows(SharedHyperparameters)
# Hyperparameters that PPO lacks.
OWN_HYPERPARAMETERS = {name: row for name, row in HYPERPARAMETERS.items() if name not in _SHARED}
# Attributes of ``GRPO`` that a model file keeps: all hyperparameters, and arguments that do not belong to the method.
SAVED_HYPERPARAMETERS = (*_SHARED, "tensorboard_log", "verbose", "seed", "reward_weights", *OWN_HYPERPARAMETERS)


def list_group(group: Group) -> tuple[str, ...]:
    """List the hyperparameters of one group."""
    return tuple(name for name, row in HYPERPARAMETERS.items() if row.group == group)
