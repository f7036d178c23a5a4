"""Show SB3's callbacks a rollout under way, by the *vectorised step*: one step of one branch per environment at most.

SB3's algorithms hand callbacks the local variables of ``collect_rollouts``. Here most are computed when a callback
asks for them, so that unread ones cost nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.vec_env import VecNormalize

from grpo_core.actor.actor import PolicyActor
from grpo_core.banks.episode_rows import VecMonitorFeed
from grpo_core.groups.collector import GroupCollector
from grpo_core.groups.rollout import GroupRollout, to_tensors
from grpo_core.spaces import unpack

# SB3's callbacks that only count, save or draw.
_HARMLESS = (CheckpointCallback, ProgressBarCallback, StopTrainingOnMaxEpisodes)
_LATER = object()  # stands in a ``VecStepLocals`` for what was not asked for yet


class VecStep:
    """One vectorised step, read from the rollout that holds it. Every array has a row per environment.

    An environment that took no step in it, because its branches have ended, shows its latest one.

    :param rollout: The rollout under way.
    :param actor: Who acts in it.
    :param collector: Plays it, and knows which places the step has in it.
    :param n_envs: Number of environments.
    :param device: Where SB3 would have its tensors.
    """

    def __init__(
        self, rollout: GroupRollout, actor: PolicyActor, collector: GroupCollector, n_envs: int, device: torch.device
    ) -> None:
        self.rollout, self.collector = rollout, collector
        self._actor, self._n_envs = actor, n_envs
        #: Whether all is done that belongs to it.
        self.is_over = False
        self.computed: Mapping[str, Callable[[], Any]] = {
            "obs_tensor": lambda: to_tensors(self.get_observations(), device),
            "actions": lambda: self.rollout.actions[self._get_rows()],
            "clipped_actions": lambda: actor.clip_actions(self.rollout.actions[self._get_rows()]),
            "new_obs": self.get_next_observations,
            "values": lambda: torch.as_tensor(self._compute_values(), device=device),
            "log_probs": lambda: torch.as_tensor(self.rollout.log_probs[self._get_rows()], device=device),
            "step_mask": self._get_step_mask,
        }

    @property
    def last_obs(self) -> Any:
        """The observations: while a callback runs those acted on, afterwards those that followed, as in SB3."""
        return self.get_next_observations() if self.is_over else self.get_observations()

    def get_observations(self) -> Any:
        """Return what the actions were chosen on, as the policy saw it, ``(n_envs, *observation_shape)``."""
        return self._normalize(self.rollout.observations[self._get_rows()])

    def get_next_observations(self) -> Any:
        """Return where the steps led, ``(n_envs, *observation_shape)``; the last observation where an episode ended."""
        return self._normalize(self.rollout.next_observations[self._get_rows()])

    def get_original_next_observations(self) -> Any:
        """Return where the steps led as the environments gave it, ``(n_envs, *observation_shape)``."""
        return unpack(self.rollout.next_observations[self._get_rows()])

    def _get_rows(self) -> tuple[list[int], ...]:
        stepped = dict(self.collector.list_places())
        places = [stepped.get(i) or self.collector.find_latest(i) for i in range(self._n_envs)]
        t, groups, branches = ([place[axis] for place in places] for axis in range(3))
        return t, groups, branches

    def _get_step_mask(self) -> npt.NDArray[np.bool_]:
        step_mask = np.zeros(self._n_envs, np.bool_)
        step_mask[[i for i, _ in self.collector.list_places()]] = True
        return step_mask

    def _compute_values(self) -> npt.NDArray[np.float32]:
        return self._actor.values(self.rollout.observations[self._get_rows()])[:, None]

    def _normalize(self, observations: npt.NDArray[Any]) -> Any:
        statistics = self._actor.normalization
        return unpack(observations) if statistics is None else statistics.apply(observations)


class CallbackView:
    """Shows a callback one vectorised step after the other, as SB3's ``collect_rollouts`` does.

    :param callback: The callback.
    :param step: Reads the latest vectorised step.
    :param entries: Local variables that stay the same throughout the rollout.
    :param normalize: The ``VecNormalize``, which groups bypass; None without one.
    :param vec_monitor: Tells a ``VecMonitor`` of the episodes that ended; None without one.
    """

    def __init__(
        self,
        callback: BaseCallback,
        step: VecStep,
        entries: Mapping[str, Any],
        normalize: VecNormalize | None,
        vec_monitor: VecMonitorFeed | None,
    ) -> None:
        self._callback, self._step, self._normalize, self._vec_monitor = callback, step, normalize, vec_monitor
        self._original_obs = OriginalObservations(step)
        self._locals = share_locals(callback)
        self._locals.compute_from(step)
        self._locals |= entries
        self._is_handed_on = _is_handed_on(callback, self._locals)
        self._n_vec_steps = count()
        outside = step.collector.outside_changes
        is_watched = not leaves_environments_alone(callback)
        self._on_step = partial(outside.watch, callback.on_step) if is_watched else callback.on_step

    def show(
        self, infos: list[dict[str, Any]], dones: npt.NDArray[np.bool_], rewards: npt.NDArray[Any], n_stepped: int
    ) -> bool:
        """Show the callback a vectorised step; return False if it ends the training.

        :param infos: The environments' infos, to which the keys are added that SB3 adds.
        :param dones: Where an episode ended, ``(n_envs,)``.
        :param rewards: The environments' own, ``(n_envs,)``.
        :param n_stepped: Number of environments that took a step.
        """
        self._step.is_over = False
        if self._vec_monitor is not None:
            self._vec_monitor.n_steps_taken += n_stepped
        self._complete(infos, dones)
        rewards.flags.writeable = False  # kept already: a callback that writes to them gets an error
        if self._normalize is not None:  # it sees none of the steps
            self._normalize.old_obs = self._original_obs  # type: ignore[assignment]
            self._normalize.old_reward = rewards
        self._locals.move_on({"infos": infos, "dones": dones, "rewards": rewards, "n_steps": next(self._n_vec_steps)})
        if self._is_handed_on:
            self._callback.update_locals(self._locals)
        return self._on_step()

    def _complete(self, infos: list[dict[str, Any]], dones: npt.NDArray[np.bool_]) -> None:
        """Add to infos the keys that SB3's vectorised environments give to every step, and to an episode's last."""
        for info in infos:
            info["TimeLimit.truncated"] = False
        if 1 not in dones.tobytes():  # many times as fast as any()
            return
        collector, rollout, last = self._step.collector, self._step.rollout, self._step.get_next_observations()
        for i, place in collector.list_places():
            if dones[i]:
                infos[i]["terminal_observation"] = (
                    {key: part[i] for key, part in last.items()} if isinstance(last, dict) else last[i]
                )
                infos[i]["TimeLimit.truncated"] = bool(rollout.truncated[place])
                if self._vec_monitor is not None:
                    self._vec_monitor.report(infos[i], *collector.count_episode(rollout, place))


class OriginalObservations:
    """Stands for ``old_obs`` of a ``VecNormalize``: where the latest vectorised step led, computed once it is copied.

    ``get_original_obs`` copies it, and so does whatever copies or pickles the ``VecNormalize``.
    """

    def __init__(self, vec_step: VecStep) -> None:
        self._vec_step = vec_step

    def __reduce__(self) -> tuple[Any, ...]:
        observations = self._vec_step.get_original_next_observations()
        return (dict if isinstance(observations, dict) else np.asarray), (observations,)


def keep_original_observations(normalize: VecNormalize | None) -> None:
    """Let a ``VecNormalize`` hold the latest observations themselves, before the rollout that holds them is cleared."""
    if normalize is not None and isinstance(vars(normalize).get("old_obs"), OriginalObservations):
        normalize.old_obs = normalize.get_original_obs()


class VecStepLocals(dict[str, Any]):
    """The local variables that callbacks see; some are computed when they are first read.

    :param entries: The known entries.
    """

    def __init__(self, entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self._computed: Mapping[str, Callable[[], Any]] = {}
        self._unread: dict[str, Any] = {}
        self._was_read = False

    def compute_from(self, vec_step: VecStep) -> None:
        """Compute further entries from a vectorised step, each when it is first read; the step may have moved on."""
        self._computed, self._unread = vec_step.computed, dict.fromkeys(vec_step.computed, _LATER)
        super().update(self._unread)

    def move_on(self, entries: Mapping[str, Any]) -> None:
        """Forget what was computed of the last vectorised step, and take what is known of the next."""
        if self._was_read:
            super().update(self._unread)
            self._was_read = False
        super().update(entries)

    # Without this one, dict() and a plain dict's update() would copy the placeholders.
    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if value is _LATER:
            value = self._computed[name]()
            self[name], self._was_read = value, True
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def pop(self, name: str, *default: Any) -> Any:
        if name in self:
            self[name], self._was_read = self[name], True
        return super().pop(name, *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        super().setdefault(name, default)
        return self[name]

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def update(self, /, *others: Any, **entries: Any) -> None:
        if others and others[0] is self:
            return  # a callback updates its locals by what it is handed, which is this very object
        super().update(*others, **entries)


def share_locals(callback: BaseCallback) -> VecStepLocals:
    """Let a callback, and those inside it that share its local variables, have them in a ``VecStepLocals``."""
    before = callback.locals
    if isinstance(before, VecStepLocals):
        return before
    shared = VecStepLocals(before)
    waiting = [callback]
    while waiting:
        one = waiting.pop()
        if one.locals is not before:
            continue
        one.locals = shared
        for value in vars(one).values():
            inner = value if isinstance(value, list | tuple) else [value]
            waiting.extend(child for child in inner if isinstance(child, BaseCallback))
    return shared


def _is_handed_on(callback: BaseCallback, shared: VecStepLocals) -> bool:
    """Return whether a callback, or one that SB3 has it tell, sees a step only if it is told of each."""
    kind = type(callback)
    if callback.locals is not shared or kind.update_locals is not BaseCallback.update_locals:
        return True
    hook, children = kind.update_child_locals, list[BaseCallback | None]()
    if hook is CallbackList.update_child_locals:
        children = callback.callbacks  # type: ignore[attr-defined]
    elif hook in (EventCallback.update_child_locals, EvalCallback.update_child_locals):
        children = [callback.callback]  # type: ignore[attr-defined]
    elif hook is not BaseCallback.update_child_locals:
        return True
    return any(_is_handed_on(child, shared) for child in children if child is not None)


def leaves_environments_alone(callback: BaseCallback) -> bool:
    """Return whether a callback neither sets anything on the environments nor steps or resets them.

    A class says so itself, by an attribute ``leaves_environments_alone``; its subclasses may do more.
    """
    if type(callback) is CallbackList:
        return all(map(leaves_environments_alone, callback.callbacks))
    if type(callback) is ConvertCallback:  # of a function, or of None
        return callback.callback is None
    return type(callback) in _HARMLESS or vars(type(callback)).get("leaves_environments_alone", False) is True
