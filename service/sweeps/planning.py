"""Plan a sweep: from a request to the jobs that it will make, all of which can be trained."""

import json
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from service.errors import InvalidRequestError, printable
from service.schemas.fields import MAX_SEED
from service.schemas.sweeps import MAX_JOBS, SweepRequest
from service.schemas.training import TrainConfig, TrainRequest
from service.sweeps.halving import DEFAULT_FACTOR, Rung, plan_rungs
from service.sweeps.space import Setting, Space, Violation, make_refusal, make_train_request
from service.sweeps.sweep import SweepRecord, make_trials

# Settings that are planned like jobs before a sweep is accepted; each takes some hundredths of a second.
_MAX_PLANNED = 32
# Fields on which the number of steps in a job's whole rollouts depends.
_SIZES = frozenset({"total_timesteps", "n_steps", "n_envs", "group_size", "horizon", "preset"})


class PlannedSweep(NamedTuple):
    """A sweep that is ready to start.

    :param seed: Seed of what was drawn.
    :param n_jobs: How many jobs it may make.
    :param timesteps: Simulator steps that all of them would take.
    """

    record: SweepRecord
    seed: int
    n_jobs: int
    timesteps: int


def plan_sweep(
    request: SweepRequest, client: str | None, max_active: int, plan: Callable[[TrainRequest], TrainConfig]
) -> PlannedSweep:
    """Plan a sweep.

    :param client: Whose it is; None if clients are not limited.
    :param max_active: Jobs at a time where the request does not say.
    :param plan: Checks a request as for a job, and fills it in.
    :raises InvalidFieldsError: If a part of the request is wrong by itself.
    :raises InvalidRequestError: If the parts do not fit together, or a setting fits no job.
    :raises ServiceError: Whatever ``plan`` raises.
    """
    space = Space(request)
    seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
    base = request.base
    seeds = request.seeds or [base.seed or 0]
    settings = space.choose_settings(request.n_trials, seed)
    first = check_settings(base, dict(enumerate(settings, 1)), plan)
    assert first is not None, "a space has at least one setting"
    total = first.total_timesteps
    rungs = _plan_rungs(request, len(settings), total)

    def plan_rung(rung: Rung) -> TrainConfig:
        return plan(make_train_request(base, {**settings[0], "total_timesteps": rung.total_timesteps or total}))

    if request.method == "halving":
        steps = [rungs[0].total_timesteps or total] * len(settings)
        plan_rung(rungs[0])
    else:
        steps = [setting.get("total_timesteps") or total for setting in settings]
    n_jobs, timesteps = _count_work(len(seeds), steps, rungs)
    if request.budget_timesteps is not None and request.method == "halving":
        _check_halving_budget(request.budget_timesteps, len(seeds), rungs, plan_rung)
    elif request.budget_timesteps is not None:
        _check_budget(request.budget_timesteps, settings, steps, first.planned_timesteps)
    name = request.name or f"sweep-{secrets.token_hex(4)}"
    record = SweepRecord(
        sweep_id=str(uuid.uuid4()),
        name=name,
        request=_complete_request(request, name, seeds, seed),
        method=request.method,
        env_name=base.env_name,
        client=client,
        seeds=seeds,
        max_active=request.max_active or max_active,
        budget_timesteps=request.budget_timesteps,
        settings=settings,
        rungs=rungs,
        trials=make_trials(range(1, len(settings) + 1), seeds, 0, steps),
        created_at=datetime.now(UTC),
    )
    return PlannedSweep(record, seed, n_jobs, timesteps)


def check_settings(
    base: TrainRequest, settings: Mapping[int, Setting], plan: Callable[[TrainRequest], TrainConfig]
) -> TrainConfig | None:
    """Plan the first setting, and those with a value that none before had; return how the first is trained.

    :param base: What all settings share.
    :param settings: By their numbers; without any, nothing is planned.
    :param plan: As in ``plan_sweep``.
    :raises InvalidRequestError: If one does not fit.
    """
    seen: set[str] = set()
    first: TrainConfig | None = None
    n_planned = 0
    for number, setting in settings.items():
        # A drawn number is always new, and hardly ever what does not fit.
        values = {json.dumps([name, value]) for name, value in setting.items() if not isinstance(value, float)}
        if first is not None and (values <= seen or n_planned >= _MAX_PLANNED):
            continue
        seen |= values
        n_planned += 1
        try:
            config = plan(make_train_request(base, setting))
        except InvalidRequestError as error:
            what = f"setting {number}, {_spell(setting)}," if setting else "'base'"
            raise InvalidRequestError(f"{what} does not fit: {error.detail}") from error
        first = first or config
    return first


def _plan_rungs(request: SweepRequest, n_settings: int, total_timesteps: int) -> list[Rung]:
    if request.method != "halving":
        return [Rung(n_settings=n_settings)]
    factor = request.reduction_factor or DEFAULT_FACTOR
    if n_settings < factor:
        message = f"of {n_settings} settings, halving by {factor} leaves none; try more, or a smaller factor"
        raise make_refusal([Violation(("reduction_factor",), message)])
    return plan_rungs(n_settings, total_timesteps, factor, request.min_timesteps or 1)


def _count_work(n_seeds: int, steps: Sequence[int], rungs: Sequence[Rung]) -> tuple[int, int]:
    """Count the jobs that a sweep may make, and the simulator steps that all of them would take.

    :param steps: Each setting's ``total_timesteps`` in the first rung.
    :raises InvalidRequestError: If these are too many jobs.
    """
    n_jobs = n_seeds * sum(rung.n_settings for rung in rungs)
    if n_jobs > MAX_JOBS:
        raise InvalidRequestError(
            f"these settings and seeds make {n_jobs:,} jobs, and a sweep may have {MAX_JOBS}; send fewer values, "
            "trials or seeds."
        )
    return n_jobs, n_seeds * (sum(steps) + sum(rung.n_settings * (rung.total_timesteps or 0) for rung in rungs[1:]))


def _check_halving_budget(
    budget: int, n_seeds: int, rungs: Sequence[Rung], plan_rung: Callable[[Rung], TrainConfig]
) -> None:
    """Refuse a budget that does not allow all rounds of halving.

    :param plan_rung: Returns how one setting of a rung is trained.
    """
    timesteps = n_seeds * sum(rung.n_settings * plan_rung(rung).planned_timesteps for rung in rungs)
    if budget < timesteps:
        raise InvalidRequestError(
            f"budget_timesteps {budget:,} is less than the {timesteps:,} that all rounds of halving take; send fewer "
            "trials or seeds, a smaller total_timesteps in 'base', or a larger budget."
        )


def _check_budget(budget: int, settings: Sequence[Setting], steps: Sequence[int], first_steps: int) -> None:
    """Refuse a budget that allows nothing.

    :param steps: Each setting's ``total_timesteps``.
    :param first_steps: Simulator steps of the first setting's job in whole rollouts.
    """
    others = [n if _SIZES & setting.keys() else first_steps for setting, n in zip(settings, steps, strict=True)]
    fewest = min([first_steps, *others[1:]])
    if budget < fewest:
        raise InvalidRequestError(
            f"budget_timesteps {budget:,} is less than the {fewest:,} steps of a single job; send more, or a smaller "
            "total_timesteps in 'base'."
        )


def _complete_request(request: SweepRequest, name: str, seeds: Sequence[int], seed: int) -> dict[str, Any]:
    """Return a request with its choices filled in, the space in its own order, and the seed in one place."""
    base = request.base.model_dump(mode="json", exclude_unset=True, exclude={"seed"})
    sent = request.model_dump(mode="json", exclude_unset=True) | {"name": name, "seeds": seeds, "seed": seed}
    return {**sent, "space": request.space, "base": base}


def _spell(setting: dict[str, Any]) -> str:
    return printable(", ".join(f"{name}={json.dumps(value)}" for name, value in setting.items()), 200)
