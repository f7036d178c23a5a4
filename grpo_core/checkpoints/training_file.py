"""Keep a training in a file while it runs, and go on from that file after whatever ended it."""

import json
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from stable_baselines3.common.callbacks import BaseCallback, EventCallback

from grpo_core.algorithm.grouped import GroupedAlgorithm
from grpo_core.checkpoints import checkpoint
from grpo_core.checkpoints.checkpoint import CheckpointError
from grpo_core.checkpoints.facts import MAX_FILE_BYTES
from grpo_core.options.hyperparameters_json import hyperparameters_to_json
from grpo_core.options.network_json import strip_implied
from grpo_core.saving.atomic_write import UnconfirmedWriteError, write_atomic
from grpo_core.saving.model_state import describe_network, describe_reward_functions

# Of the arguments: what does not change a training under way, whose random generators are in its checkpoint.
# Of the shards of rollouts their number counts, which ``restore`` checks, and not what it was given as.
_WITHOUT_EFFECT = {"seed", "verbose", "tensorboard_log", "n_rollout_workers", "n_rollout_shards"}


class KeepCheckpoint(BaseCallback):
    """Keeps the latest checkpoint of a ``GRPO`` in one file while it trains.

    The file is replaced at once, between two rollouts, so that a reader finds the last checkpoint or the one before.
    What nobody could read again, such as weights that are not finite, replaces nothing, nor does what cannot be
    described, nor what a full disk refuses; a warning says so, training goes on, and the next checkpoint is tried when
    it is due.

    :param path: The file. A missing folder is made.
    :param every_steps: Simulator steps between two checkpoints, > 0; None goes by the clock alone.
    :param every_seconds: Seconds between two where ``every_steps`` is None, >= 0.
    :raises ValueError: If one of them is out of its range.
    """

    leaves_environments_alone = True

    model: GroupedAlgorithm

    def __init__(
        self,
        path: str | os.PathLike[str],
        every_steps: int | None = None,
        every_seconds: float = 60.0,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps={every_steps} is not a number of steps; give 1 or more, or None.")
        if not every_seconds >= 0.0:
            raise ValueError(f"every_seconds={every_seconds} is not a duration; give 0 or more.")
        self.path = Path(path)
        self._every_steps, self._every_seconds = every_steps, every_seconds
        self._taken_timesteps, self._taken_at = 0, 0.0
        self._sees_rollouts = False

    def _on_training_start(self) -> None:
        if isinstance(self.parent, EventCallback):  # now, and not when it is to keep something
            self._refuse_place()
        self.path.parent.mkdir(parents=True, exist_ok=True)  # now, and not when there is something to lose
        self._taken_timesteps, self._taken_at = self.model.num_timesteps, time.monotonic()
        self._sees_rollouts = False

    def _on_step(self) -> bool:
        if not self._sees_rollouts:
            self._refuse_place()
        return True

    def _on_rollout_start(self) -> None:
        self._sees_rollouts = True
        # At the start, nothing can be lost yet, and the file may be the one that training continues from. After a stop,
        # the update before this may have been cut short.
        if self.model.num_timesteps == self._taken_timesteps or self.model._stop_requested:
            return
        if self._every_steps is None:
            is_due = time.monotonic() - self._taken_at >= self._every_seconds
        else:
            is_due = self.model.num_timesteps // self._every_steps > self._taken_timesteps // self._every_steps
        if is_due:
            self._take()
            self._taken_timesteps, self._taken_at = self.model.num_timesteps, time.monotonic()

    def _refuse_place(self) -> NoReturn:
        raise ValueError(
            "KeepCheckpoint takes checkpoints between rollouts, of which a callback inside another one, such as "
            "EveryNTimesteps or EvalCallback, is not told; give it to learn() itself, or in a list."
        )

    def _take(self) -> None:
        try:
            write_atomic(self.path, checkpoint.to_bytes(self.model))
        except Exception as error:  # layers and optimizers of the user's own may be described in any way
            keeps = "may not keep" if isinstance(error, UnconfirmedWriteError) else "keeps no"
            warnings.warn(f"{self.path} {keeps} step {self.num_timesteps:,}: {error}", stacklevel=2)


def resume_training(model: GroupedAlgorithm, path: str | os.PathLike[str]) -> int:
    """Put a training back into a new model, and return how many of its steps are left.

    ``model.learn(n_left, reset_num_timesteps=False)`` then ends with the weights that it would have ended with, bit for
    bit. Where something cannot be kept, such as an environment's state, so that it goes on with new episodes, or an
    optimizer that was put in place of the model's own, a warning says so.

    :param model: A ``GRPO`` with the same arguments, around new environments of the same make.
    :param path: A file that ``KeepCheckpoint`` wrote.
    :return: Simulator steps until the ``total_timesteps`` of the ``learn`` that was interrupted, >= 0.
    :raises OSError: If the file cannot be read.
    :raises CheckpointError: If it is damaged, or of another training.
    :raises ValueError: If the model has no environment.
    """
    path = Path(path)
    if (n_bytes := path.stat().st_size) > MAX_FILE_BYTES:
        raise CheckpointError(f"{path} has {n_bytes} bytes; at most {MAX_FILE_BYTES} are read.")
    taken = checkpoint.from_bytes(path.read_bytes())
    _check_arguments(model, taken.model.meta)
    caveat = checkpoint.restore(model, taken)
    if caveat is not None and caveat.is_certain:
        warnings.warn(
            f"training goes on from step {taken.timesteps:,}, but not exactly as before: {caveat.reason}.",
            stacklevel=2,
        )
    n_left: int = taken.facts["total_timesteps"] - model.num_timesteps
    return max(0, n_left)


def _check_arguments(model: GroupedAlgorithm, meta: Mapping[str, Any]) -> None:
    """Refuse a model that would train otherwise than the one that a checkpoint was taken of.

    :param meta: The metadata of that one, as ``describe_model`` collected them.
    """
    parts = {"network": strip_implied(describe_network(model)), "reward_function": describe_reward_functions(model)}
    given = hyperparameters_to_json(model) | json.loads(json.dumps(parts))
    kept = meta["hyperparameters"] | {name: meta[name] for name in parts} | {"network": strip_implied(meta["network"])}
    others = [name for name in kept if name not in _WITHOUT_EFFECT and kept[name] != given.get(name)]
    if others:
        here, there = (", ".join(f"{name}={values.get(name)}" for name in others) for values in (given, kept))
        raise CheckpointError(
            f"the model has {here}, but the checkpoint is of a training with {there}; make the model with the same "
            "arguments, or load a saved model to train it on with others."
        )
