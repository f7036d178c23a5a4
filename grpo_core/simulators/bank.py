"""Drive the simulators behind a vectorised environment one by one, in this process or in workers.

A ``SimulatorBank`` resets and steps single environments, and restores captured states before a step on request. It does
not use ``VecEnv.step``, which would reset environments that are done. It does to observations what the vectorised
environment's wrappers do, except for normalisation, which the rollout does.
"""

import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import lru_cache
from multiprocessing.connection import wait
from typing import Any, NamedTuple
from weakref import ref

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from grpo_core.environments.first_calls import check_masks, check_methods, check_observation, check_reset, check_step
from grpo_core.environments.nested import list_nested_envs
from grpo_core.restoring.errors import FailedResetError, FailedTrialError, NotBranchableError, ReplacedLayerError
from grpo_core.restoring.outside import OutsideChanges
from grpo_core.restoring.report import RestoringReport
from grpo_core.restoring.simulator import Simulator, SimulatorState
from grpo_core.restoring.state import BOOKKEEPING, list_restored_layers
from grpo_core.simulators.restorable_wrapper import Failure, RestorableWrapper
from grpo_core.simulators.single_env import Observed, Order, Outcome, SingleEnv, make_observer
from grpo_core.simulators.vec_wrappers import Frames, ObservationTransform, read_vec_wrappers
from grpo_core.simulators.visits import Player, notice_visits

__all__ = ["Findings", "Observed", "Order", "Outcome", "SimulatorBank", "find_obstacle", "make_bank"]

# The first environment of each kind is tried out thoroughly, the others of its kind only for what is theirs alone.
_N_BRIEF_STEPS = 8
_MAX_BRIEF_SECONDS = 0.2
# For all those of further kinds, of which there may be one per environment: a number of its own is enough.
_MAX_OTHERS_SECONDS = 4.0
# A kind is a class and its parameters of these types; a seed is none.
_PLAIN = (bool, int, float, str)
_SEED = "_np_random_seed"
# Of these packages' classes it is known what each method does, unless an environment was given another one.
_LIBRARIES = ("gymnasium.", "stable_baselines3.", "ale_py.")
_OWN_METHODS = frozenset({"action_masks", "capture_state", "restore_state"})

# A method of an environment in a worker: its name and its arguments.
_Call = tuple[str, tuple[Any, ...], dict[str, Any]]


class Findings(NamedTuple):
    """What trials have found out about the environments of a bank.

    :param is_cheap: Whether capturing and restoring is so cheap that one environment can play many branches in
        lock-step. It depends on the clock.
    :param rewound: Where the random generators are that a restore puts back, too.
    """

    is_cheap: bool
    rewound: tuple[str, ...] = ()


class SimulatorBank(ABC):
    """The single environments behind a vectorised environment.

    :param n_envs: Number of environments.
    :param transform: What the vectorised environment's wrappers do to observations.
    :param restorable: Whether states are captured and restored; otherwise the bank only resets and steps.
    :param findings: What has been found out about the environments.
    """

    def __init__(self, n_envs: int, transform: ObservationTransform, restorable: bool, findings: Findings) -> None:
        self.n_envs = n_envs
        self.restorable = restorable
        self.findings = findings
        #: The environments, if they are in this process and no wrapper but ``VecNormalize`` changes their observations;
        #: otherwise empty.
        self.plain_envs: Sequence[gym.Env[Any, Any]] = ()
        #: What is set on the environments from outside, as far as they are restored by copies.
        self.outside_changes = OutsideChanges(())
        #: What was found out about the environments that were tried out.
        self.reports: Sequence[RestoringReport] = ()
        self._transform = transform
        self._single_envs: Sequence[SingleEnv] = ()
        self._frames: list[Frames] = [()] * n_envs

    def reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        """Start new episodes.

        :param seeds: The seed for each environment to reset, by index; None continues its random sequence.
        :return: The first observation and the state, by index; the state is None unless ``restorable``.
        """
        return {i: self._transform_reset(i, observed, state) for i, (observed, state) in self._reset(seeds).items()}

    def step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        """Step environments; those in workers run in parallel.

        An environment is not reset when its episode ends. Every environment needs a reset before its first step, even
        if a state is restored first.

        :param orders: The orders, by index of the environment.
        :return: Their outcomes, by index.
        :raises RuntimeError: If an environment in a worker fails.
        """
        if self._transform.is_empty:
            return self._step(orders)
        inner_orders = {}
        for i, order in orders.items():
            if order.restore is not None:
                state, self._frames[i] = order.restore
                order = order._replace(restore=state)
            inner_orders[i] = order
        return {i: self._transform_outcome(i, outcome) for i, outcome in self._step(inner_orders).items()}

    def is_outdated(self, *, tries_capture: bool = False) -> bool:
        """Return whether environments, wrappers or methods were replaced since, so that a bank must be made anew.

        Of environments in workers only a wrapper that holds another one is noticed, when they are restored or captured.

        :param tries_capture: Whether it also must be where states can no longer be captured.
        """
        return False

    def find_masks(self) -> None:
        """Look up again who tells the legal actions; those in workers are asked for them by name."""
        for single_env in self._single_envs:
            single_env.find_masks()

    def renew(self, states: Sequence[tuple[int, SimulatorState]]) -> list[SimulatorState]:
        """Set what was set on the environments from outside in states that were captured before, and here.

        :param states: Each with the index of its environment.
        :return: These states, in their order; all that is captured from now on has it, too.
        """
        if self._transform.is_empty:
            return self._renew(states)
        renewed = self._renew([(i, inner) for i, (inner, _) in states])
        return [(inner, frames) for inner, (_, (_, frames)) in zip(renewed, states, strict=True)]

    def _transform_reset(self, i: int, observed: Observed, state: SimulatorState | None) -> Any:
        if self._transform.is_empty:
            return observed, state
        observation, self._frames[i] = self._transform.apply(observed.observation, None)
        return observed._replace(observation=observation), (state, self._frames[i]) if self.restorable else None

    def _transform_outcome(self, i: int, outcome: Outcome) -> Outcome:
        observation, self._frames[i] = self._transform.apply(outcome.observed.observation, self._frames[i])
        state = None if outcome.state is None else (outcome.state, self._frames[i])
        return outcome._replace(observed=outcome.observed._replace(observation=observation), state=state)

    @abstractmethod
    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]: ...

    @abstractmethod
    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]: ...

    def _renew(self, states: Sequence[tuple[int, SimulatorState]]) -> list[SimulatorState]:
        return [state for _, state in states]  # nothing is noticed in environments that are not restored


def make_bank(
    env: VecEnv,
    *,
    needs_restore: bool,
    common_random_numbers: bool = False,
    must_pay: bool = False,
    findings: Findings | None = None,
) -> SimulatorBank:
    """Make a bank of the environments behind a vectorised environment.

    Environments that are not known to be restored are tried out first, see ``Simulator.prove``. All environments must
    be reset before their first step.

    :param env: A ``DummyVecEnv`` or ``SubprocVecEnv``, in any of ``VecNormalize``, ``VecFrameStack``,
        ``VecTransposeImage``, ``VecMonitor`` and ``VecCheckNan``. With ``needs_restore``, each environment of a
        ``SubprocVecEnv`` needs a ``RestorableWrapper``. ``VecMonitor`` sees none of the steps;
        ``find_vec_monitor`` finds it, to be told of episodes.
    :param needs_restore: Whether states will be captured and restored.
    :param common_random_numbers: Whether states include the environments' random generators, so that all branches of a
        state see the same noise.
    :param must_pay: Whether an environment that takes much longer to restore than to step counts as one that cannot be
        restored.
    :param findings: Those of another bank of the same environments, wherever it is; None tries them out.
    :raises NotBranchableError: If ``needs_restore`` is set and an environment cannot be restored; the message says why.
    :raises ValueError: If the vectorised environment or one of its wrappers is not supported.
    :raises RuntimeError: If an environment in a worker fails.
    :raises Exception: With ``needs_restore``, the error of an environment in this process whose reset fails.
    """
    base, transform = read_vec_wrappers(env)
    _check_monitors(base)
    bank: SimulatorBank
    if isinstance(base, DummyVecEnv):
        bank = _LocalBank(base, transform, needs_restore, common_random_numbers, findings)
    elif not isinstance(base, SubprocVecEnv):
        raise ValueError(
            f"GRPO steps the single environments of a DummyVecEnv or SubprocVecEnv, not of a {type(base).__name__}; "
            "build one of these with make_vec_env(env_id, n_envs, vec_env_cls=...)."
        )
    elif needs_restore:
        bank = _RestorableWorkerBank(base, transform, common_random_numbers)
    else:
        bank = _PlainWorkerBank(base, transform)
    for report in bank.reports:
        if must_pay and not report.pays:
            raise NotBranchableError(
                f'Restoring {report.env} costs more than it can pay back. {report.price} group_mode="branch" branches '
                "all the same; own methods capture_state() and restore_state(state) may be faster."
            )
    _warn_of_shared(bank.reports)
    return bank


def find_obstacle(env: VecEnv, *, must_pay: bool = False) -> str | None:
    """Return why groups cannot branch in a vectorised environment; None if they can.

    The environments must be reset afterwards.

    :param must_pay: Whether restoring that takes much longer than steps is an obstacle.
    :raises ValueError: If the vectorised environment or one of its wrappers is not supported.
    :raises RuntimeError: If an environment in a worker fails.
    :raises Exception: The error of an environment in this process that fails when it is just reset and stepped.
    """
    try:
        make_bank(env, needs_restore=True, must_pay=must_pay)
    except FailedTrialError as error:
        raise error.__cause__ or error from None
    except NotBranchableError as error:
        return str(error)
    return None


class _LocalBank(SimulatorBank):
    """Environments in this process."""

    def __init__(
        self,
        base: DummyVecEnv,
        transform: ObservationTransform,
        needs_restore: bool,
        common_random_numbers: bool,
        findings: Findings | None,
    ) -> None:
        envs, self._base = _list_envs(base), base
        self._layers = _describe_layers(envs, needs_restore)  # first: a trial may replace some itself
        # Not tried out, they may share objects that steps change.
        keeps_originals = findings is None
        simulators = [
            Simulator(env, common_random_numbers, keeps_originals=keeps_originals) for env in envs if needs_restore
        ]
        reports = _prove_all(simulators) if findings is None else []
        if findings is None:
            is_cheap = needs_restore and all(simulator.is_cheap for simulator in simulators)
            findings = Findings(is_cheap, _list_rewound(reports))
        super().__init__(len(envs), transform, needs_restore, findings)
        self.reports = reports
        self._simulators = simulators
        self._single_envs = [
            SingleEnv(env, simulators[i] if needs_restore else None, findings.rewound) for i, env in enumerate(envs)
        ]
        if transform.is_empty:
            self.plain_envs = envs
        if needs_restore:
            self.outside_changes = OutsideChanges(envs)
            for single_env in self._single_envs:
                single_env.after_restore = self.outside_changes.put_again
        self._visits = notice_visits(base)
        self._visits.add(self.outside_changes)
        self._me: ref[Player] = ref(self)

    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        self._visits.begin(self._me)
        return {i: self._single_envs[i].reset(seed) for i, seed in seeds.items()}

    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        self._visits.begin(self._me)
        return {i: self._single_envs[i].step(order) for i, order in orders.items()}

    def is_outdated(self, *, tries_capture: bool = False) -> bool:
        if _describe_layers(_list_envs(self._base), self.restorable) != self._layers:
            return True
        if tries_capture:
            try:
                for simulator in self._simulators:
                    simulator.capture()
            except NotBranchableError:
                return True
            except Exception:  # foreign code: some environments have no state before their first reset
                return False
        return False

    def leave(self, indices: Iterable[int], is_to_step: bool) -> None:
        """Let somebody else move some of the environments."""
        for i in indices:
            self._single_envs[i].leave(is_to_step)

    def _renew(self, states: Sequence[tuple[int, SimulatorState]]) -> list[SimulatorState]:
        renewed = [self.outside_changes.renew(self._simulators[i], state) for i, state in states]
        self.outside_changes.put()
        self.outside_changes.clear()
        return renewed


class _RestorableWorkerBank(SimulatorBank):
    """Environments in worker processes, each inside a ``RestorableWrapper``."""

    def __init__(self, base: SubprocVecEnv, transform: ObservationTransform, common_random_numbers: bool) -> None:
        reports = _prove_in_workers(base, common_random_numbers)
        super().__init__(base.num_envs, transform, restorable=True, findings=Findings(False, _list_rewound(reports)))
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
        return {i: reply for i, (reply,) in _call_workers(self._base, calls).items()}


class _OutsideChangesInWorkers(OutsideChanges):
    """What is set from outside on environments in workers, each of which keeps it itself."""

    def __init__(self, base: SubprocVecEnv) -> None:
        super().__init__(())
        self._base = base

    def has_changes(self) -> bool:
        calls: dict[int, list[_Call]] = {i: [("has_outside_changes", (), {})] for i in range(self._base.num_envs)}
        return any(has_changes for (has_changes,) in _call_workers(self._base, calls).values())


class _PlainWorkerBank(SimulatorBank):
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
        for i in self._unchecked["reset()"].intersection(replies):
            self._check_first(i, "reset()", replies[i])
        return {i: (self._observe(reply[0][0], reply), None) for i, reply in replies.items()}

    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        # The environment's own step, since the worker's would reset an environment that is done.
        replies = self._call({i: ("step", (order.action,), {}) for i, order in orders.items()})
        outcomes = {}
        for i in self._unchecked["step()"].intersection(replies):
            self._check_first(i, "step()", replies[i])
        for i, reply in replies.items():
            observation, reward, terminated, truncated, info = reply[0]
            observed = self._observe(observation, reply)
            outcomes[i] = Outcome(observed, float(reward), bool(terminated), bool(truncated), info, None)
        return outcomes

    def _call(self, calls: Mapping[int, _Call]) -> dict[int, list[Any]]:
        """Call a method of environments, and that of their masks along with it: a worker need not wait for that one."""
        masks: list[_Call] = [("action_masks", (), {})] if self._has_masks else []
        all_calls = {i: [call, *masks] for i, call in calls.items()}
        if self._says_errors:
            all_calls = {
                i: [("try_call", (name, *arguments), options) for name, arguments, options in both]
                for i, both in all_calls.items()
            }
        return _call_workers(self._base, all_calls)

    def _check_first(self, i: int, method: str, reply: Sequence[Any]) -> None:
        """Check what the first call of a method returned; this process sees the outermost wrapper's answer alone."""
        source, returned = f"environment {i}", reply[0]
        check = check_reset if method == "reset()" else check_step
        check(source, returned)
        check_observation(source, method, returned[0], self._base.observation_space)
        if self._has_masks:
            check_masks(self._base.action_space, reply[1], len(returned) == 5 and bool(returned[2] or returned[3]))
        self._unchecked[method].remove(i)

    def _observe(self, observation: Any, replies: Sequence[Any]) -> Observed:
        return self._observe_env(observation, replies[1] if self._has_masks else None)


def _list_envs(base: DummyVecEnv) -> list[gym.Env[Any, Any]]:
    return [env.env if isinstance(env, RestorableWrapper) else env for env in base.envs]


def _describe_layers(envs: Sequence[gym.Env[Any, Any]], needs_restore: bool) -> list[Any]:
    """Describe what a bank relies on: the environments, and where they are restored their layers, too.

    Layers are described by their ids, which no others have as long as a bank holds them.
    """
    if not needs_restore:
        return list(map(id, envs))
    return [
        (id(layer), type(layer), vars(layer).keys() & _get_methods(type(layer)))
        for env in envs
        for layer in list_restored_layers(env)
    ]


def _list_methods(kind: Any) -> Set[str]:
    """List the methods of a library's class, in whose place one environment may be given its own."""
    if not kind.__module__.startswith(_LIBRARIES):
        return frozenset()  # of other classes all attributes are copied, methods among them
    return _OWN_METHODS | {name for name in dir(kind) if callable(getattr(kind, name, None))}


_get_methods: Callable[[Any], Set[str]] = lru_cache(maxsize=1024)(_list_methods)


def _check_monitors(base: VecEnv) -> None:
    """Check that no ``Monitor`` refuses the resets that groups need.

    :raises ValueError: If one does.
    """
    allowed: list[bool] = []
    if isinstance(base, DummyVecEnv):
        layers = [layer for env in base.envs for layer in list_nested_envs(env)]
        allowed = [layer.allow_early_resets for layer in layers if isinstance(layer, Monitor)]
    elif isinstance(base, SubprocVecEnv):
        name = ("allow_early_resets",)
        replies = _call_workers(base, {i: [("has_wrapper_attr", name, {})] for i in range(base.num_envs)})
        monitored = [i for i, (has_monitor,) in replies.items() if has_monitor]
        replies = _call_workers(base, {i: [("get_wrapper_attr", name, {})] for i in monitored})
        allowed = [is_allowed for (is_allowed,) in replies.values()]
    if not all(allowed):
        raise ValueError(
            "Monitor(env, allow_early_resets=False) refuses resets before the end of an episode, and groups begin new "
            "episodes in the middle of others; take Monitor(env), whose allow_early_resets is True."
        )


def _prove_all(simulators: Sequence[Simulator]) -> list[RestoringReport]:
    """Try out simulators in this process.

    :raises NotBranchableError: If one cannot be restored.
    :raises InvalidEnvironmentError: If a method returns what it must not.
    :raises Exception: The error of an environment whose reset fails.
    """
    reports, kinds = list[RestoringReport](), set[Any]()
    seconds_left = _MAX_OTHERS_SECONDS
    all_shared, changed = _find_shared(simulators), list[Any]()
    for simulator, shared in zip(simulators, all_shared, strict=True):
        kind = tuple(map(_describe_kind, list_nested_envs(simulator.env)))
        began = time.monotonic()
        try:
            if kind in kinds:
                report = simulator.prove(_N_BRIEF_STEPS, _MAX_BRIEF_SECONDS, shared=shared)
            elif kinds:
                report = simulator.prove(max_seconds=max(seconds_left, _MAX_BRIEF_SECONDS), shared=shared)
                seconds_left -= time.monotonic() - began
            else:
                report = simulator.prove(shared=shared)
        except FailedTrialError as error:
            check_methods(simulator.env)
            cause = error.__cause__
            if isinstance(error, FailedResetError) and cause is not None:
                raise cause from cause.__cause__
            raise
        kinds.add(kind)
        if report is not None:
            reports.append(report)
            changed += [shared[path] for path in report.shared]
    for simulator in simulators if changed else ():
        simulator.release(changed)
    return reports


def _find_shared(simulators: Sequence[Simulator]) -> list[dict[str, Any]]:
    """Find the objects that several environments hold, in each by where they are.

    What holds another of the environments goes its own way from now on.
    """
    if len(simulators) < 2:
        return [{} for _ in simulators]
    originals = [_list_originals(simulator) for simulator in simulators]
    layers = {id(layer) for simulator in simulators for layer in list_nested_envs(simulator.env)}
    for simulator, held in zip(simulators, originals, strict=True):
        if others := [value for value in held.values() if id(value) in layers]:
            simulator.release(others)
    n_holders = Counter(i for held in originals for i in set(map(id, held.values())))
    return [{path: value for path, value in held.items() if n_holders[id(value)] > 1} for held in originals]


def _list_originals(simulator: Simulator) -> dict[str, Any]:
    try:
        return simulator.list_originals()
    except Exception:  # foreign code, which the trial names
        return {}


def _warn_of_shared(reports: Sequence[RestoringReport]) -> None:
    """Warn of an object that several environments hold, and change."""
    path = next((path for report in reports for path in report.shared), None)
    if path is not None:
        warnings.warn(
            f"{path} is held by several environments, and their resets or steps change it. A restore of one must not "
            "put the others back, so each goes on with a copy of its own, and what you hold stays behind. Give each "
            'environment an object of its own, keep it in a module, or use group_mode="episode", which restores '
            "nothing.",
            stacklevel=3,
        )


def _describe_kind(layer: gym.Env[Any, Any]) -> tuple[Any, ...]:
    """Return the class of a layer and its parameters, on which it may depend what changes in it."""
    attributes = {} if type(layer) in BOOKKEEPING else vars(layer)
    parameters = {name: repr(value) for name, value in attributes.items() if isinstance(value, _PLAIN)}
    parameters.pop(_SEED, None)
    return type(layer), *sorted(parameters.items())


def _list_rewound(reports: Sequence[RestoringReport]) -> tuple[str, ...]:
    return tuple(sorted({path for report in reports for path in report.rewound}))


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
    replies = _call_workers(
        base, {i: [("prove_restoring", (common_random_numbers,), {})] for i in range(base.num_envs)}
    )
    for (reply,) in replies.values():
        if isinstance(reply, str):
            raise NotBranchableError(reply)
    return [reply for (reply,) in replies.values() if reply is not None]


def _are_restorable(base: SubprocVecEnv) -> bool:
    """Tell whether ``RestorableWrapper`` is the outermost wrapper of each environment."""
    # class_name returns the outermost wrapper's name; an environment without wrappers has no such method.
    return all(base.env_is_wrapped(RestorableWrapper)) and set(base.env_method("class_name")) == {"RestorableWrapper"}


def _call_workers(base: SubprocVecEnv, calls: Mapping[int, Sequence[_Call]]) -> dict[int, list[Any]]:
    """Call methods of environments in workers, in all workers at the same time.

    :param calls: The methods to call in turn, by index of the environment.
    :return: What they returned, by index.
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
                if reply.replaced is not None:
                    raise ReplacedLayerError(reply.replaced)
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
        "Its environment's own errors are said here, if RestorableWrapper is the outermost wrapper."
    )
