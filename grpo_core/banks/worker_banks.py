"""Simulators in the worker processes of a ``SubprocVecEnv``."""

from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv

from grpo_core.banks.bank import Findings, SimulatorBank, list_rewound
from grpo_core.banks.restorable_wrapper import Failure, RestorableWrapper
from grpo_core.banks.single_env import Observed, Order, Outcome, make_observer
from grpo_core.banks.vec_wrappers import ObservationTransform
from grpo_core.environments.first_calls import check_masks, check_observation, check_reset, check_step, is_usual
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.outside_changes import OutsideChanges
from grpo_core.restoring.proving.report import RestoringReport
from grpo_core.restoring.simulator import SimulatorState

# A method of an environment in a worker: its name and its arguments.
_Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class RestorableWorkerBank(SimulatorBank):
    """Environments in worker processes, each inside a ``RestorableWrapper``."""

    def __init__(self, base: SubprocVecEnv, transform: ObservationTransform, common_random_numbers: bool) -> None:
        reports = _prove_in_workers(base, common_random_numbers)
        super().__init__(base.num_envs, transform, restorable=True, findings=Findings(False, list_rewound(reports)))
        self.reports = reports
        self._base = base
        self._common_random_numbers = common_random_numbers
        self.outside_changes = _OutsideChangesInWorkers(base)

    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        return self._call("take_reset", seeds)

    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        return self._call("take_order", orders)

    def _renew(self, states: Sequence[tuple[int, SimulatorState]]) -> list[SimulatorState]:
        theirs = {i: [state for index, state in states if index == i] for i in range(self.n_envs)}
        renewed = {i: iter(reply) for i, reply in self._call("renew_states", theirs).items()}
        return [next(renewed[i]) for i, _ in states]

    def _call(self, name: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        calls: dict[int, list[_Call]] = {
            i: [(name, (argument, self._common_random_numbers), {})] for i, argument in arguments.items()
        }
        return {i: reply for i, (reply,) in call_workers(self._base, calls).items()}


class _OutsideChangesInWorkers(OutsideChanges):
    """Changes from outside to environments in workers; each worker keeps its own."""

    def __init__(self, base: SubprocVecEnv) -> None:
        super().__init__(())
        self._base = base

    def has_changes(self) -> bool:
        calls: dict[int, list[_Call]] = {i: [("has_outside_changes", (), {})] for i in range(self._base.num_envs)}
        return any(has_changes for (has_changes,) in call_workers(self._base, calls).values())


class PlainWorkerBank(SimulatorBank):
    """Environments in worker processes that are only reset and stepped, and need no ``RestorableWrapper``."""

    def __init__(self, base: SubprocVecEnv, transform: ObservationTransform) -> None:
        super().__init__(base.num_envs, transform, restorable=False, findings=Findings(is_cheap=False))
        self._base = base
        self.find_masks()
        self._unchecked = {"reset()": set(range(base.num_envs)), "step()": set(range(base.num_envs))}
        self._observe_env = make_observer(base.observation_space)
        self._says_errors = _are_restorable(base)

    def find_masks(self) -> None:
        self._has_masks = self._base.has_attr("action_masks")

    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        replies = self._call({i: ("reset", (), {"seed": seed}) for i, seed in seeds.items()})
        masks = self._ask_for_masks(replies)
        return {i: (self._observe(i, "reset()", reply, masks.get(i)), None) for i, reply in replies.items()}

    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        # The environment's own step, since the worker's would reset an environment that is done.
        replies = self._call({i: ("step", (order.action,), {}) for i, order in orders.items()})
        for i, reply in replies.items():
            if not is_usual(reply):
                check_step(f"environment {i}", reply)
        masks = self._ask_for_masks([i for i, reply in replies.items() if not (reply[2] or reply[3])])
        outcomes = {}
        for i, reply in replies.items():
            _, reward, terminated, truncated, info = reply
            observed = self._observe(i, "step()", reply, masks.get(i))
            outcomes[i] = Outcome(observed, float(reward), bool(terminated), bool(truncated), info, None)
        return outcomes

    def _ask_for_masks(self, indices: Iterable[int]) -> dict[int, Any]:
        return self._call({i: ("action_masks", (), {}) for i in indices}) if self._has_masks else {}

    def _call(self, calls: Mapping[int, _Call]) -> dict[int, Any]:
        """Call a method of each environment."""
        if self._says_errors:
            calls = {i: ("try_call", (name, *arguments), options) for i, (name, arguments, options) in calls.items()}
        return {i: reply for i, (reply,) in call_workers(self._base, {i: [call] for i, call in calls.items()}).items()}

    def _check_first(self, i: int, method: str, returned: Any, masks: Any) -> None:
        """Check what the first call of a method returned; this process sees the outermost wrapper's answer alone."""
        source = f"environment {i}"
        check = check_reset if method == "reset()" else check_step
        check(source, returned)
        check_observation(source, method, returned[0], self._base.observation_space)
        check_masks(self._base.action_space, masks)
        self._unchecked[method].remove(i)

    def _observe(self, i: int, method: str, returned: Any, masks: Any) -> Observed:
        if i in self._unchecked[method]:
            self._check_first(i, method, returned, masks)
        observation = returned[0]
        try:
            return self._observe_env(observation, masks)
        except Exception:  # whatever the form of the observation may cause
            check_observation(f"environment {i}", method, observation, self._base.observation_space)
            raise


def _prove_in_workers(base: SubprocVecEnv, common_random_numbers: bool) -> list[RestoringReport]:
    """Try out the environments in workers.

    :raises NotBranchableError: If one cannot be restored.
    """
    if not _are_restorable(base):
        raise NotBranchableError(
            "The environments of a SubprocVecEnv can be restored only if RestorableWrapper is the outermost wrapper of "
            "each: make_vec_env(env_id, n_envs, vec_env_cls=SubprocVecEnv, wrapper_class=RestorableWrapper). "
            'group_mode="episode", which only resets and steps, does not need it.'
        )
    replies = call_workers(base, {i: [("prove_restoring", (common_random_numbers,), {})] for i in range(base.num_envs)})
    for (reply,) in replies.values():
        if isinstance(reply, str):
            raise NotBranchableError(reply)
    return [reply for (reply,) in replies.values() if reply is not None]


def _are_restorable(base: SubprocVecEnv) -> bool:
    """Tell whether ``RestorableWrapper`` is the outermost wrapper of each environment."""
    # class_name returns the outermost wrapper's name; an environment without wrappers has no such method.
    return all(base.env_is_wrapped(RestorableWrapper)) and set(base.env_method("class_name")) == {"RestorableWrapper"}


def call_workers(base: SubprocVecEnv, calls: Mapping[int, Sequence[_Call]]) -> dict[int, list[Any]]:
    """Call methods of environments in workers, in all workers at the same time.

    :param calls: The methods to call in turn, by index of the environment.
    :return: What they returned, by index.
    :raises NotBranchableError: If an environment's state cannot be captured or restored.
    :raises RuntimeError: If a worker dies or its environment fails. It is raised after all others have answered, since
        an answer left in a pipe would be mistaken for that of the next call.
    """
    for i, worker_calls in calls.items():
        for call in worker_calls:
            _send(base, i, call)
    replies = {i: [_receive(base, i) for _ in worker_calls] for i, worker_calls in calls.items()}
    for i, worker_replies in replies.items():
        for reply in worker_replies:
            if isinstance(reply, Failure):
                if reply.obstacle is not None:
                    raise reply.obstacle
                raise RuntimeError(f"Environment {i} failed in its worker process:\n{reply.traceback}")
    return replies


def _send(base: SubprocVecEnv, i: int, call: _Call) -> None:
    try:
        base.remotes[i].send(("env_method", call))
    except (BrokenPipeError, ConnectionResetError):
        return  # the worker is dead; _receive reports it


def _receive(base: SubprocVecEnv, i: int) -> Any:
    remote, process = base.remotes[i], base.processes[i]
    # The pipe of a dead worker may still be open, since workers started later may have inherited its end.
    if remote in wait([remote, process.sentinel]):
        try:
            return remote.recv()
        except (EOFError, ConnectionResetError):
            pass
    process.join()
    return Failure(
        f"The process died with exit code {process.exitcode}; its stderr may say why. "
        "Its environment's own errors are shown here if RestorableWrapper is the outermost wrapper."
    )
