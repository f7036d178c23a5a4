"""Simulators in this process, tried out before a restore is relied on."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any
from weakref import WeakMethod

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.banks.bank import Findings, SimulatorBank, list_rewound
from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.banks.single_env import Observed, Order, Outcome, SingleEnv
from grpo_core.banks.vec_wrappers import ObservationTransform
from grpo_core.banks.visits import Leave, notice_visits
from grpo_core.environments.first_calls import check_methods
from grpo_core.environments.nested import list_nested_envs
from grpo_core.replaced_methods import is_patched
from grpo_core.restoring.errors import FailedResetError, FailedTrialError, NotBranchableError
from grpo_core.restoring.object_graph import SCALARS, walk
from grpo_core.restoring.outside_changes import OutsideChanges
from grpo_core.restoring.proving.report import RestoringReport
from grpo_core.restoring.simulator import Simulator, SimulatorState
from grpo_core.restoring.state import BOOKKEEPING, is_known, list_restored_layers

# The first environment of each kind is tried out thoroughly, the others of its kind only for what is theirs alone.
_N_BRIEF_STEPS = 8
_MAX_BRIEF_SECONDS = 0.2
# For all further kinds together: one differing number makes a new kind, so there may be as many as environments.
_MAX_OTHERS_SECONDS = 4.0
# Two environments are of one kind if their first values, nearest first and at most this many, are equal; seeds and the
# time at which a Monitor was made are left out.
_MAX_DESCRIBED = 1_000
_VARYING = ("._np_random_seed", ".t_start")
# The methods of these packages' classes are known, unless an environment was given another one.
_LIBRARIES = ("gymnasium.", "stable_baselines3.", "ale_py.")
_OWN_METHODS = frozenset({"action_masks", "capture_state", "restore_state"})


class LocalBank(SimulatorBank):
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
            findings = Findings(is_cheap, list_rewound(reports))
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
        self._leave: WeakMethod[Leave] = WeakMethod(self.leave)

    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, tuple[Observed, SimulatorState | None]]:
        self._visits.begin(self._leave)
        return {i: self._single_envs[i].reset(seed) for i, seed in seeds.items()}

    def _step(self, orders: Mapping[int, Order]) -> dict[int, Outcome]:
        self._visits.begin(self._leave)
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
        """Let others move some of the environments."""
        for i in indices:
            self._single_envs[i].leave(is_to_step)

    def _renew(self, states: Sequence[tuple[int, SimulatorState]]) -> list[SimulatorState]:
        renewed = [self.outside_changes.renew(self._simulators[i], state) for i, state in states]
        self.outside_changes.put()
        self.outside_changes.clear()
        return renewed


def _list_envs(base: DummyVecEnv) -> list[gym.Env[Any, Any]]:
    return [env.env if isinstance(env, RestorableWrapper) else env for env in base.envs]


def _describe_layers(envs: Sequence[gym.Env[Any, Any]], needs_restore: bool) -> list[Any]:
    """Describe what a bank relies on: the environments, and where they are restored their layers, too.

    Layers are described by their ids, which no others have as long as a bank holds them.
    """
    if not needs_restore:
        return list(map(id, envs))
    layers = [layer for env in envs for layer in list_restored_layers(env)]
    return [
        *((id(layer), type(layer), vars(layer).keys() & _get_methods(type(layer))) for layer in layers),
        {kind for kind in {*map(type, layers)} if kind.__module__.startswith(_LIBRARIES) and is_patched(kind)},
    ]


def _list_methods(kind: Any) -> Set[str]:
    """List the methods of a library's class, in whose place one environment may be given its own."""
    if not kind.__module__.startswith(_LIBRARIES):
        return frozenset()  # of other classes all attributes are copied, methods among them
    return _OWN_METHODS | {name for name in dir(kind) if callable(getattr(kind, name, None))}


_get_methods: Callable[[Any], Set[str]] = lru_cache(maxsize=1024)(_list_methods)


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
        kind = _describe_kind(simulator.env)
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
        simulator.originals.release(changed)
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
            simulator.originals.release(others)
    n_holders = Counter(i for held in originals for i in set(map(id, held.values())))
    return [{path: value for path, value in held.items() if n_holders[id(value)] > 1} for held in originals]


def _list_originals(simulator: Simulator) -> dict[str, Any]:
    try:
        return simulator.list_originals()
    except Exception:  # foreign code, which the trial names
        return {}


def _describe_kind(env: gym.Env[Any, Any]) -> Hashable:
    """Describe the types and the parameters of what an environment holds, on which it may depend what changes in it."""
    layers = list_nested_envs(env)
    known = [layer for layer in layers if type(layer) in BOOKKEEPING or (layer is layers[-1] and is_known(layer))]
    found = walk(layers, known, _MAX_DESCRIBED, shared=False, code=True)
    try:
        return frozenset((path, type(value), _describe(value)) for path, value in found if not path.endswith(_VARYING))
    except Exception:  # foreign code: objects may refuse to be looked at
        return object()  # like no other


def _describe(value: Any) -> Any:
    if isinstance(value, SCALARS):
        return repr(value)
    return value if isinstance(value, type) else getattr(value, "__code__", None)
