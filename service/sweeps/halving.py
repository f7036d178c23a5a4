"""Successive halving: many settings with few steps, then the best of them with more.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016
(https://arxiv.org/abs/1502.07943). Every rung trains anew: a schedule that falls over the training is then the same
share of the way down at the same share of the steps.
"""

import statistics
from collections.abc import Sequence

from pydantic import BaseModel

from service.schemas.sweeps import SettingRow
from service.sweeps.ranking import list_rewards

DEFAULT_FACTOR = 3


class Rung(BaseModel):
    """One round.

    :param n_settings: How many settings take part.
    :param total_timesteps: How many simulator steps each of their jobs takes; None leaves that to the setting.
    """

    n_settings: int
    total_timesteps: int | None = None


def plan_rungs(n_settings: int, total_timesteps: int, factor: int, min_timesteps: int) -> list[Rung]:
    """Plan the rounds, from all settings to those that get all steps.

    :param total_timesteps: Steps of the last round.
    :param factor: By how much the number of settings falls and that of the steps rises, at least 2.
    :param min_timesteps: Fewest steps of the first round.
    """
    n_rungs = 1
    while factor**n_rungs <= n_settings and total_timesteps // factor**n_rungs >= max(1, min_timesteps):
        n_rungs += 1
    return [
        Rung(n_settings=n_settings // factor**rung, total_timesteps=total_timesteps // factor ** (n_rungs - 1 - rung))
        for rung in range(n_rungs)
    ]


def choose_promoted(rows: Sequence[SettingRow], rung: int, n_promoted: int) -> list[int]:
    """Return the numbers of the settings that go on from a rung, the best first.

    A setting's own row may show an earlier rung, if it lacks a seed here: such ones come after the others.

    :param rows: All settings.
    """
    places = []
    for row in rows:
        n_seeds, rewards = sum(trial.rung == rung for trial in row.trials), list_rewards(row, rung)
        if rewards:
            places.append((len(rewards) < n_seeds, -statistics.fmean(rewards), row.number))
    return [number for *_, number in sorted(places)[:n_promoted]]
