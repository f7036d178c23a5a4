"""Train a policy as an order says."""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from grpo import GRPO
from grpo_core.checkpoints import checkpoint
from grpo_core.checkpoints.checkpoint import Checkpoint, CheckpointError
from grpo_core.saving import model_file
from grpo_core.saving.model_file import ModelContent
from grpo_core.saving.model_state import get_weights, put_weights
from service.environments.build import build_vec_env
from service.schemas.training import TrainConfig
from service.training.build_model import build_model, use_one_thread
from service.training.checkpoint_callback import CheckpointCallback
from service.training.evaluation.background_evaluation import BackgroundEvaluation
from service.training.evaluation.evaluation_callback import EvaluationCallback
from service.training.evaluation.evaluator import Evaluator
from service.training.evaluation.final_evaluation import evaluate_finally
from service.training.evaluation.periodic_evaluation import PeriodicEvaluation
from service.training.evaluation.value_check import refit_values
from service.training.evaluation.work_time import WorkTime
from service.training.init_model import begin_from
from service.training.order import FINISHED, TrainingOrder
from service.training.stop_rules import StopRules
from service.workers.task import Progress


def train_in_task(order: TrainingOrder, progress: Progress) -> bytes:
    """Run ``train_policy`` as a task; if the checkpoint cannot be used, train from the start."""
    config = order.config
    if order.checkpoint is not None:
        try:
            return train_policy(order, progress)
        except CheckpointError as error:
            if config.init_model is not None and order.init is None:
                raise CheckpointError(
                    f"{error} Nor can the job begin again: its init_model '{config.init_model}' is gone; start a new "
                    "job."
                ) from error
            progress.publish_warning(f"training began again: {error}")
    return train_policy(order._replace(checkpoint=None), progress)


def train_policy(order: TrainingOrder, progress: Progress) -> bytes:
    """Train a policy and return its model file; a stop makes it return early, with the policy so far.

    :param progress: Receives reports of the training.
    :raises CheckpointError: If the checkpoint is damaged or of another training.
    :raises Exception: Whatever the environment or the reward function raises.
    """
    use_one_thread()
    config, n_threads = order.config, order.n_threads
    taken = None if order.checkpoint is None else checkpoint.from_bytes(order.checkpoint)
    with ExitStack() as opened:
        building = WorkTime.now()
        env = build_vec_env(config.env_setup, config.n_envs)
        build_seconds = WorkTime.now().since(building) / config.n_envs
        opened.callback(env.close)
        model = build_model(config, env, order.reward)
        model.n_simulator_threads, model.rollout_stall_seconds = n_threads, order.stall_seconds
        # SB3's own logger would create a folder per training.
        formats = [_MetricsWriter(progress), *([] if order.run_dir is None else [_open_tensorboard(order.run_dir)])]
        model.set_logger(Logger(folder=None, output_formats=formats))
        opened.callback(model.logger.close)
        stop_rules = StopRules(progress, config.max_seconds)
        model.after_minibatch = stop_rules.tick
        evaluator = Evaluator(config, n_threads)
        opened.callback(evaluator.close)
        evaluations = EvaluationCallback()
        if config.eval_freq is not None:
            evaluations = PeriodicEvaluation(config, evaluator, stop_rules, progress)
        elif config.n_eval_episodes > 0:
            evaluations = BackgroundEvaluation(evaluator, stop_rules, progress, build_seconds)
        checkpoints = CheckpointCallback(config, evaluations, stop_rules, progress)
        if taken is not None:
            checkpoints.restore(model, taken)
        elif order.init is not None:
            checkpoints.lineage = begin_from(model, config, order.init, progress.publish_warning)
        training = _Training(config, model, evaluator, evaluations, stop_rules, checkpoints, progress)
        training.learn(taken)
        return training.finish()


def _open_tensorboard(run_dir: Path) -> TensorBoardOutputFormat:
    """Open a TensorBoard log; its folder is created.

    :raises OSError: If the disk refuses.
    """
    try:
        return TensorBoardOutputFormat(str(run_dir))
    except OSError as error:
        raise OSError(
            f"the TensorBoard log {run_dir} cannot be written ({error.strerror}); set GRPO_TENSORBOARD_DIR to a folder "
            "that can be, or train with tensorboard_log=false."
        ) from error


@dataclass
class _Training:
    """A training, ready to begin.

    :param seconds: How long it took.
    """

    config: TrainConfig
    model: GRPO
    evaluator: Evaluator
    evaluations: EvaluationCallback
    stop_rules: StopRules
    checkpoints: CheckpointCallback
    progress: Progress
    seconds: float = 0.0

    def learn(self, taken: Checkpoint | None) -> None:
        """Take the steps that are left; what a stop or an error interrupts can go on from the latest checkpoint.

        :param taken: The checkpoint that the model was restored from; None if it begins.
        """
        n_left = max(0, self.config.total_timesteps - self.model.num_timesteps)
        if taken is not None and FINISHED in taken.attachments:
            n_left = 0  # a rule may have ended it earlier
        callbacks: list[BaseCallback] = [_ProgressCallback(self.stop_rules), self.evaluations, self.checkpoints]
        begun = time.monotonic()
        try:
            self.model.learn(n_left, callbacks, reset_num_timesteps=taken is None)
        except BaseException:
            self.checkpoints.publish()
            raise
        if self.stop_rules.ended_by == "stop":
            self.checkpoints.publish()
        self.seconds = time.monotonic() - begun
        self.model.logger.dump(self.model.num_timesteps)  # what the last update measured
        self.evaluations.evaluate_last()

    def finish(self) -> bytes:
        """Evaluate the policy to save, the best one or the last, refit its values, and return its model file."""
        model, stop_rules, best = self.model, self.stop_rules, self.evaluations.best
        provenance: dict[str, Any] = {
            **self.config.env_setup._asdict(),
            "config": self.config.model_dump(),
            "ended_by": stop_rules.ended_by or "total_timesteps",
        }
        if self.config.eval_freq is not None:
            provenance["evaluation"] = self.evaluations.find_evaluation()
        if self.checkpoints.lineage is not None:
            provenance["lineage"] = self.checkpoints.lineage._asdict()
        saved, actor = None, model.make_numpy_actor()
        if best is not None:
            saved = model_file.from_bytes(best[1], with_optimizer=True)
            actor = saved.make_actor()
        if self.config.n_eval_episodes > 0:
            if stop_rules.ended_by != "stop":  # code of the environment runs once more, and may end this process
                self.checkpoints.take_finished(_make_content(model, saved, provenance))
            if saved is not None:
                put_weights(model.policy, saved.weights)
            timesteps = model.num_timesteps if saved is None else saved.meta["num_timesteps"]
            evaluation = evaluate_finally(self.evaluator, actor, timesteps, self.seconds, stop_rules, self.progress)
            provenance["final_evaluation"] = evaluation
            if evaluation is not None:
                provenance["value_check"] = refit_values(model, actor, self.evaluator, self.seconds, stop_rules)
                if saved is not None:
                    weights = get_weights(model.policy)
                    saved = replace(saved, weights={name: weights[name] for name in saved.weights})
        return _make_content(model, saved, provenance)


def _make_content(model: GRPO, saved: ModelContent | None, provenance: Mapping[str, Any]) -> bytes:
    """Return the model file of the best policy, or of the last one if none was kept; its steps include the former's."""
    if "lineage" in provenance:
        n_own = model.num_timesteps if saved is None else saved.meta["num_timesteps"]
        provenance = {**provenance, "num_timesteps": n_own + provenance["lineage"]["num_timesteps"]}
    provenance = _without_non_finite(provenance)  # which no file takes: a figure must not cost the policy
    if saved is None:
        return model.to_bytes(**provenance)
    return model_file.to_bytes({**saved.meta, **provenance}, saved.weights, saved.optimizer, saved.normalization)


def _without_non_finite(value: Any) -> Any:
    """Return JSON with null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _without_non_finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _ProgressCallback(BaseCallback):
    """Reports every step, and ends the training when the stop rules say so."""

    leaves_environments_alone = True

    def __init__(self, stop_rules: StopRules) -> None:
        super().__init__()
        self._stop_rules = stop_rules

    def _on_training_start(self) -> None:
        assert isinstance(self.model, GRPO)
        self._stop_rules.begin(self.model)

    def _on_step(self) -> bool:
        self._stop_rules.tick()
        return True


class _MetricsWriter(KVWriter):
    """Reports the finite numbers that SB3 logs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        numbers = {key: float(value) for key, value in key_values.items() if not isinstance(value, str)}
        self._progress.publish_metrics({key: number for key, number in numbers.items() if math.isfinite(number)})

    def close(self) -> None:
        """Do nothing: no file is open."""
