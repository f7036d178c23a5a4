"""The simulator steps that a sweep's jobs take, or will take: what its budget is of."""

from pydantic import BaseModel

from service.schemas.sweeps import Trial


class TrialSteps(BaseModel):
    """Simulator steps of a trial that its job does not show.

    :param planned: What its job takes in whole rollouts; None before it was planned.
    :param repeated: Those that its job has taken again, since a worker or the server had died.
    :param earlier: Those of its earlier jobs, which could not go on.
    """

    planned: int | None = None
    repeated: int = 0
    earlier: int = 0


def count_taken(trial: Trial, steps: TrialSteps) -> int:
    """Return the simulator steps that a trial has taken so far."""
    return trial.current_timesteps + steps.repeated + steps.earlier


def count_expected(trial: Trial, steps: TrialSteps) -> int:
    """Return the simulator steps that a trial will have taken when it is done, if nothing interrupts it."""
    return max(steps.planned or trial.total_timesteps, trial.current_timesteps) + steps.repeated + steps.earlier
