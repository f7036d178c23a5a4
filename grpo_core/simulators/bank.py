"""The simulators behind a vectorised environment, in this process or in workers, as a rollout drives them.

A ``SimulatorBank`` resets and steps single environments without ``VecEnv.step``, which would reset those that are done,
and puts them into captured states first if asked. It does to observations what the vectorised environment's wrappers
do, except for normalisation, which belongs to the rollout.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from grpo_core.simulators.restorable_wrapper import Failure, RestorableWrapper
from grpo_core.simulators.simulator import NotBranchableError, Simulator, SimulatorState
from grpo_core.simulators.single_env import Observed, Order, Outcome, SingleEnv, make_observer
from grpo_core.simulators.vec_wrappers import Frames, ObservationPath, read_vec_wrappers

__all__ = ["Observed", "Order", "Outcome", "SimulatorBank", "find_obstacle", "make_bank"]

# The name of a method of a worker's environment, and its arguments.
_Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class SimulatorBank(ABC):
    """The single environments behind a vectorised one.

    :param n_envs: Number of environments.
    :param path: What the vectorised environment's wrappers do to observations.
    :param restorable: Whether states are captured and restored; if not, the bank only resets and steps.
    :param is_cheap: Whether capturing and restoring cost so little that one environment may serve many branches
        in lock-step.
    """

    def __init__(self, n_envs: int, path: ObservationPath, restorable: bool, is_cheap: bool) -> None:
        self.n_envs = n_envs
        self.restorable = restorable
        self.is_cheap = is_cheap
        #: The environments themselves, where they live in this process and the policy sees their own observations,
        #: normalised at most; empty elsewhere.
        self.plain_envs: Sequence[gym.Env[Any, Any]] = ()
        self._path = path
        self._frames: list[Frames] = [()] * n_envs

    def reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        """Start new episodes.

        :param seeds: The environments to reset by index, each with its seed or None to go on drawing.
        :return: The first observation and, if ``restorable``, the state, by environment.
        """
        return {i: self._lead_reset(i, observed, state) for i, (observed, state) in self._reset(seeds).items()}

    def step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        """Step environments, those in workers at the same time.

        An environment is not reset where its episode ends. Every environment needs a reset before its first step,
        even if a state is restored first.

        :param orders: What to do, by environment.
        :raises RuntimeError: If an environment in a worker fails.
        """
        if self._path.is_empty:
            return self._step(orders)
        inner_orders = {}
        for i, order in orders.items():
            if order.restore is not None:
                state, self._frames[i] = order.restore
                order = order._replace(restore=state)
            inner_orders[i] = order
        return {i: self._lead_step(i, outcome) for i, outcome in self._step(inner_orders).items()}

    def _lead_reset(self, i: int, observed: Observed, state: SimulatorState | None) -> Any:
        if self._path.is_empty:
            return observed, state
        observation, self._frames[i] = self._path.lead(observed.observation, None)
        return observed._replace(observation=observation), (state, self._frames[i]) if self.restorable else None

    def _lead_step(self, i: int, outcome: Outcome) -> Outcome:
        observation, self._frames[i] = self._path.lead(outcome.observed.observation, self._frames[i])
        state = None if outcome.state is None else (outcome.state, self._frames[i])
        return outcome._replace(observed=outcome.observed._replace(observation=observation), state=state)

    @abstractmethod
    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]: ...

    @abstractmethod
    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]: ...


def make_bank(env: VecEnv, *, needs_restore: bool, common_random_numbers: bool = False) -> SimulatorBank:
    """Take hold of the environments behind a vectorised one.

    Environments whose copies are not known to be complete are stepped a few times to find out. All environments have to
    be reset before their first step.

    :param env: A ``DummyVecEnv``, or a ``SubprocVecEnv`` with a ``RestorableWrapper`` around each environment, which
        only ``needs_restore`` demands; with ``VecNormalize``, ``VecFrameStack``, ``VecTransposeImage``, ``VecMonitor``
        and ``VecCheckNan`` around it. ``VecMonitor`` sees none of the steps.
    :param needs_restore: Whether states have to be captured and restored.
    :param common_random_numbers: Whether states include the environments' random generators, so that all branches of a
        state see the same noise.
    :raises NotBranchableError: If an environment cannot be restored and ``needs_restore`` is set; with the reason.
    :raises ValueError: If the vectorised environment or a wrapper of it is of another kind.
    :raises RuntimeError: If an environment in a worker fails.
    """
    base, path = read_vec_wrappers(env)
    if isinstance(base, DummyVecEnv):
        return _LocalBank(base, path, needs_restore, common_random_numbers)
    if not isinstance(base, SubprocVecEnv):
        raise ValueError(
            f"GRPO steps the single environments of a DummyVecEnv or SubprocVecEnv, not of a {type(base).__name__}. "
            "Build one of these with make_vec_env(env_id, n_envs, vec_env_cls=...)."
        )
    obstacle = _find_worker_obstacle(base) if needs_restore else None
    if obstacle is not None:
        raise NotBranchableError(obstacle)
    return _RestorableWorkerBank(base, path, common_random_numbers) if needs_restore else _PlainWorkerBank(base, path)


def find_obstacle(env: VecEnv) -> str | None:
    """Say why groups cannot branch in a vectorised environment; None if they can.

    The environments have to be reset afterwards.

    :raises ValueError: If the vectorised environment is one that ``make_bank`` refuses whatever it is for.
    :raises RuntimeError: If an environment in a worker fails.
    """
    try:
        make_bank(env, needs_restore=True)
    except NotBranchableError as error:
        return str(error)
    return None


class _LocalBank(SimulatorBank):
    """Environments in this process."""

    def __init__(
        self, base: DummyVecEnv, path: ObservationPath, needs_restore: bool, common_random_numbers: bool
    ) -> None:
        envs = [env.env if isinstance(env, RestorableWrapper) else env for env in base.envs]
        simulators = [Simulator(env, common_random_numbers) for env in envs] if needs_restore else []
        for simulator in simulators:
            simulator.prove()
        self._single_envs = [SingleEnv(env, simulators[i] if needs_restore else None) for i, env in enumerate(envs)]
        is_cheap = needs_restore and all(simulator.is_cheap for simulator in simulators)
        super().__init__(len(envs), path, needs_restore, is_cheap)
        if path.is_empty:
            self.plain_envs = envs

    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        return {i: self._single_envs[i].reset(seed) for i, seed in seeds.items()}

    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        return {i: self._single_envs[i].step(order) for i, order in orders.items()}


class _RestorableWorkerBank(SimulatorBank):
    """Environments in worker processes, each inside a ``RestorableWrapper``."""

    def __init__(self, base: SubprocVecEnv, path: ObservationPath, common_random_numbers: bool) -> None:
        super().__init__(base.num_envs, path, restorable=True, is_cheap=False)
        self._base = base
        self._common_random_numbers = common_random_numbers

    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        return self._call("take_reset", seeds)

    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        return self._call("take_order", orders)

    def _call(self, name: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        calls: dict[int, list[_Call]] = {
            i: [(name, (argument, self._common_random_numbers), {})] for i, argument in arguments.items()
        }
        return {i: reply for i, (reply,) in _call_workers(self._base, calls).items()}


class _PlainWorkerBank(SimulatorBank):
    """Environments in worker processes, with or without a wrapper of ours, which are only reset and stepped."""

    def __init__(self, base: SubprocVecEnv, path: ObservationPath) -> None:
        super().__init__(base.num_envs, path, restorable=False, is_cheap=False)
        self._base = base
        self._has_masks = base.has_attr("action_masks")
        self._observe_env = make_observer(base.observation_space)
        # Both calls are on their way before the first is answered.
        self._mask_call: list[_Call] = [("action_masks", (), {})] if self._has_masks else []

    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        calls: dict[int, list[_Call]] = {
            i: [("reset", (), {"seed": seed}), *self._mask_call] for i, seed in seeds.items()
        }
        replies = _call_workers(self._base, calls)
        return {i: (self._observe(reply[0][0], reply), None) for i, reply in replies.items()}

    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        # The environment's own step, and not the worker's, which would reset an environment that is done.
        calls: dict[int, list[_Call]] = {
            i: [("step", (order.action,), {}), *self._mask_call] for i, order in orders.items()
        }
        outcomes = {}
        for i, reply in _call_workers(self._base, calls).items():
            observation, reward, terminated, truncated, info = reply[0]
            observed = self._observe(observation, reply)
            outcomes[i] = Outcome(observed, float(reward), bool(terminated), bool(truncated), info, None)
        return outcomes

    def _observe(self, observation: Any, replies: Sequence[Any]) -> Observed:
        return self._observe_env(observation, replies[1] if self._has_masks else None)


def _find_worker_obstacle(base: SubprocVecEnv) -> str | None:
    # class_name is the outermost wrapper's; an environment without wrappers has none.
    if not all(base.env_is_wrapped(RestorableWrapper)) or set(base.env_method("class_name")) != {"RestorableWrapper"}:
        return (
            "The environments in the workers of a SubprocVecEnv can be restored if each has a RestorableWrapper "
            "outside of all its other wrappers: make_vec_env(env_id, n_envs, vec_env_cls=SubprocVecEnv, "
            'wrapper_class=RestorableWrapper). group_mode="episode", which only resets and steps, needs none.'
        )
    replies = _call_workers(base, {i: [("find_obstacle", (), {})] for i in range(base.num_envs)})
    return next((obstacle for (obstacle,) in replies.values() if obstacle is not None), None)


def _call_workers(base: SubprocVecEnv, calls: Mapping[int, Sequence[_Call]]) -> dict[int, list[Any]]:
    """Call methods of environments in workers, all at the same time.

    :param calls: Which methods to call one after the other, by environment.
    :return: What they returned, by environment.
    :raises RuntimeError: If a worker dies or its environment fails, once all others have answered: an answer that is
        left in its pipe would be taken for that of the next call.
    """
    for i, worker_calls in calls.items():
        for call in worker_calls:
            _send(base, i, call)
    replies = {i: [_receive(base, i) for _ in worker_calls] for i, worker_calls in calls.items()}
    for i, worker_replies in replies.items():
        for reply in worker_replies:
            if isinstance(reply, Failure):
                raise RuntimeError(f"Environment {i} failed in its worker process:\n{reply.traceback}")
    return replies


def _send(base: SubprocVecEnv, i: int, call: _Call) -> None:
    try:
        base.remotes[i].send(("env_method", call))
    except (BrokenPipeError, ConnectionResetError):
        return  # the worker is dead; _receive reports it


def _receive(base: SubprocVecEnv, i: int) -> Any:
    remote, process = base.remotes[i], base.processes[i]
    # A dead worker's pipe need not be closed: workers started after it may have inherited its end.
    if remote in wait([remote, process.sentinel]):
        try:
            return remote.recv()
        except (EOFError, ConnectionResetError):
            pass
    process.join()
    return Failure(f"The process died with exit code {process.exitcode}; it may have written why to stderr.")
