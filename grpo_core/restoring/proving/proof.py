"""Prove by replays that an environment is restored, as training restores it."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.monitor import Monitor

from grpo_core.environments.action_masks import get_action_masks, sample_action
from grpo_core.environments.nested import list_nested_envs, name_env
from grpo_core.restoring.copying.copier import describe_kind
from grpo_core.restoring.errors import FailedResetError, FailedTrialError, NotBranchableError
from grpo_core.restoring.generators import Noise, find_noise
from grpo_core.restoring.object_graph import describe_contents, list_differences
from grpo_core.restoring.proving.failures import REMEDY, describe_difference, explain, is_same, naming
from grpo_core.restoring.proving.preserving import Restorable, preserve
from grpo_core.restoring.proving.report import RestoringReport
from grpo_core.restoring.state import BOOKKEEPING, is_known

# A first round with branches this short measures how long things take.
_FIRST_STEPS = 4
# Further rounds, until enough was tried: with branches of 64 steps one will do where episodes last 40 steps, and five
# where they last eight.
_MAX_ROUNDS = 5
# Total steps that are enough, in branches of ``n_steps``.
_ENOUGH_BRANCHES = 3
# Branches whose first recording or replay is not the long one, in one round.
_N_SHORT_PLAYS = 12
# Steps of two branches that take turns.
_N_TURNS = 12
# Every second branch repeats an action for this long, and so comes farther.
_N_REPEATS = 8
# Seed of the trial's noise and actions.
_SEED = 1


class Shipment(NamedTuple):
    """How captured states are sent to another process and back; the same state may come back several times."""

    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


class _Branch(NamedTuple):
    """The actions taken from one state on, and what was observed."""

    actions: list[Any]
    steps: list[tuple[Any, ...]]


@dataclass
class _Point:
    """A captured state, and the branches that start there.

    :param noise: The states of all random generators.
    :param contents: What the layers held, to name what differs if a replay does.
    """

    place: str
    state: Any
    noise: dict[str, Any]
    contents: dict[str, Any]
    branches: list[_Branch] = field(default_factory=list)


class _SecondEpisode(NamedTuple):
    """How an episode goes that begins after a few steps of another.

    :param state: First state of the other episode.
    :param noise: The states of all random generators there.
    :param first: Its steps.
    :param second: The first observation after the reset, and the steps that follow.
    """

    state: Any
    noise: dict[str, Any]
    first: _Branch
    second: _Branch


def prove(
    subject: Restorable,
    n_steps: int,
    max_seconds: float,
    seed: int | None,
    shipment: Shipment | None,
    shared: Mapping[str, Any],
) -> RestoringReport:
    """Play branches from several states, again and again in between each other, and compare them exactly.

    The layers are stepped just as training steps them. Some restores write into the objects that were there at first,
    others replace all of them, as those of states from other processes do. What noise is drawn from any generator is
    repeated for the replays. The environment, its generators and the process-wide ones are put back to where they were;
    an environment that cannot be restored is reset instead.

    :param n_steps: Steps per branch, as long as its episode goes on.
    :param max_seconds: Take fewer steps rather than much more time than this.
    :param seed: Seed of the first reset, of the actions and of all generators; None gives that reset none, and begins
        the same sequences every time.
    :param shipment: How states travel in training, if they do.
    :param shared: Objects that other environments hold, too, by where they are.
    :return: The findings.
    :raises NotBranchableError: If a replay differs, or anything fails; the message names what.
    """
    trial = _Trial(subject, shipment, shared)
    with preserve(subject, trial.noise):
        return trial.run(n_steps, max_seconds, seed)


class _Trial:
    """Tries out one environment."""

    def __init__(self, subject: Restorable, shipment: Shipment | None, shared: Mapping[str, Any]) -> None:
        self._subject, self._env = subject, subject.env
        self._shared = {path: (value, describe_contents([value], shared=False)) for path, value in shared.items()}
        self._changed: list[str] = []
        self._shipment = shipment or Shipment(lambda state: state, lambda state: state)
        self._takes_turns = subject.is_cheap and shipment is None
        self._layers = list_nested_envs(subject.env)
        self._known = [env for env in self._layers if is_known(env)]
        self.noise = Noise(self._layers, self._known)
        # A Monitor goes on counting. What is left of known layers must be restored.
        self._uncompared = [env for env in self._layers if isinstance(env, Monitor) or type(env) in BOOKKEEPING]
        self._seconds: dict[str, list[float]] = {"capture": [], "restore": [], "step": []}
        self._places: list[str] = []
        self._n_branches, self._n_recorded, self._n_replayed, self._longest = 0, 0, 0, 0
        self._n_long, self._n_short = 1, 1
        self._is_over = True
        # From then on no failure is the environment's alone: a reset need not undo what a restore did.
        self._has_restored = False
        self._rewound: tuple[str, ...] = ()

    def run(self, n_steps: int, max_seconds: float, seed: int | None) -> RestoringReport:
        start = time.perf_counter()
        self._deadline = start + max_seconds
        self._action_space = copy.deepcopy(self._env.action_space)
        # A rare event is met always or never, not by chance. The list keeps the sequences apart from those by which
        # rewound generators are found.
        self.noise.reseed(np.random.default_rng([_SEED, 0 if seed is None else seed]))
        self._action_space.seed(_SEED if seed is None else seed)
        self._n_long = self._n_short = min(_FIRST_STEPS, n_steps)
        second = self._play_into_second_episode(seed)
        self._look_at_shared()
        self._play_round(seed)
        self._replay_into_second_episode(second)
        is_shortened = False
        for _ in range(_MAX_ROUNDS if n_steps > _FIRST_STEPS else 0):
            self._fit_steps(n_steps, self._deadline - time.perf_counter())
            is_shortened = self._n_short < n_steps
            if self._n_short < _FIRST_STEPS:
                break
            self._play_round(None)
            self._replay_into_second_episode(second)
            if self._n_recorded >= _ENOUGH_BRANCHES * n_steps or self._n_short < n_steps:
                break
        us = {name: 1e6 * median(seconds) if seconds else 0.0 for name, seconds in self._seconds.items()}
        return RestoringReport(
            env=name_env(self._env),
            layers=tuple(self._subject.accesses),
            points=tuple(self._places),
            n_branches=self._n_branches,
            n_replayed=self._n_replayed,
            n_steps=self._longest,
            is_shortened=is_shortened,
            seconds=time.perf_counter() - start,
            capture_us=us["capture"],
            restore_us=us["restore"],
            step_us=us["step"],
            takes_turns=self._takes_turns,
            rewound=self._rewound,
            shared=tuple(self._changed),
        )

    def _look_at_shared(self) -> None:
        """Note which objects that others hold, too, resets and steps have changed."""
        for path, (value, before) in list(self._shared.items()):
            if describe_contents([value], shared=False) != before:
                self._changed.append(path)
                del self._shared[path]

    def _fit_steps(self, n_steps: int, seconds_left: float) -> None:
        """Choose how long branches are, so that a round takes no longer than there is time."""
        step, capture, restore = (median(self._seconds[name] or [0.0]) for name in ("step", "capture", "restore"))
        seconds_left -= (2 * _N_TURNS + 4) * capture + (2 * _N_TURNS + _N_SHORT_PLAYS) * restore
        n_left = seconds_left / step if step > 0.0 else float("inf")
        if n_left >= (_N_SHORT_PLAYS + 3) * n_steps:
            self._n_long = self._n_short = n_steps
            return
        # One branch goes as far as it can, in up to half of the time: it is played three times.
        self._n_long = min(n_steps, int(n_left / 6))
        self._n_short = min(n_steps, max(0, int((n_left - 3 * self._n_long) / _N_SHORT_PLAYS)))

    def _play_round(self, seed: int | None) -> None:
        """Play branches from the start of an episode, from the middle of it, and from the start of the next."""
        self._reset(seed)
        start = self._mark("at the start of an episode")
        self._record(start, self._n_long, is_there=True)
        self._look_at_shared()
        self._rewound = self._rewound or self._find_rewound(start)
        self._record(start, self._n_short, repeats=True)
        self._replay(start, 0)
        if self._is_late():
            return
        middle = self._go_on(start)
        self._record(middle, self._n_short, is_there=middle is not start)
        self._replay(start, 1)
        self._record(middle, self._n_short, repeats=True)
        self._replay(middle, -2)
        if not self._is_late() and self._play_to_the_end():
            self._replay(middle, -1)  # a branch may start where another one ended
            self._reset(None)
            after = self._mark("after the end of one")
            self._record(after, self._n_short, is_there=True)
            self._replay(start, 0)
            self._record(after, self._n_short, repeats=True)
            self._replay(after, 0)
        self._reset(None)
        self._replay(middle, -1)
        self._take_turns(middle)

    def _play_into_second_episode(self, seed: int | None) -> _SecondEpisode | None:
        """Play from one episode into the next before anything has been restored.

        :return: None if the second does not begin twice the same either way, so that it would prove nothing, or if it
            is late.
        """
        noise_before, actions = self.noise.capture(), copy.deepcopy(self._action_space)
        self._reset(seed)
        state, noise = self._capture(), self.noise.capture()
        first, second, is_repeatable = self._play_few(actions, []), None, False
        noise_between = self.noise.capture()
        if not self._is_late():
            self._reset(None)
            second = self._play_few(actions, [self._first_observation])
        if second is not None and not self._is_late():
            self.noise.restore(noise_between)
            is_repeatable = self._is_begun_again(second, "")
        self.noise.restore(noise_before)  # what follows meets the same noise, however slow this was
        return _SecondEpisode(state, noise, first, second) if second is not None and is_repeatable else None

    def _is_begun_again(self, episode: _Branch, when: str) -> bool:
        """Reset, take the same actions, and return whether all is seen that was seen then."""
        self._reset(None)
        seen = [self._first_observation]
        for action in episode.actions:
            if self._is_over:
                return False
            seen.append(self._step(action, when))
        return is_same(episode.steps, seen)

    def _play_few(self, action_space: Any, seen: list[Any]) -> _Branch:
        """Play a short branch.

        :param seen: What was seen before it, which its steps begin with.
        """
        branch = _Branch([], seen)
        while len(branch.actions) < _FIRST_STEPS and not self._is_over:
            branch.actions.append(self._draw_action(action_space))
            branch.steps.append(self._step(branch.actions[-1], ""))
        return branch

    def _replay_into_second_episode(self, episode: _SecondEpisode | None) -> None:
        """Play the same after restores: a reset must not miss what a restore has put elsewhere."""
        if episode is None or self._is_late():
            return
        noise_before = self.noise.capture()
        self._restore(episode.state, episode.noise, in_place=False)
        for action in episode.first.actions:
            self._step(action, "in a replay")
        if not self._is_begun_again(episode.second, "in a replay"):
            raise NotBranchableError(
                f"{name_env(self._env)} is not restored exactly: reset() begins another episode after a restore than "
                "without. A function, a weak reference or a view of an array may still hold what the restore has "
                f"replaced by a copy. {REMEDY}"
            )
        self._put_back(episode.state)
        self.noise.restore(noise_before)

    def _find_rewound(self, point: _Point) -> tuple[str, ...]:
        """Find the generators that a restore puts back."""
        # Not those that environments in other threads may be drawing from.
        noise = find_noise(self._env, process_wide=False, shared=False)
        before = noise.capture()
        states = []
        for seed in range(2):
            noise.reseed(np.random.default_rng(seed))
            self._put_back(point.state)
            states.append(noise.capture())
        noise.restore(before)
        found = [path for path, state in states[0].items() if path in states[1] and is_same(state, states[1][path])]
        hidden = [f"A {describe_kind(value)} deep inside" for value in self._subject.list_hidden_generators()]
        return (*found, *dict.fromkeys(hidden))

    def _is_late(self) -> bool:
        return time.perf_counter() > self._deadline

    def _go_on(self, start: _Point) -> _Point:
        """Go to the middle of a point's first branch; return a point there, or the same one if there is no middle."""
        n_steps = len(start.branches[0].actions) // 2
        if n_steps == 0:
            return start
        self._go_to(start)
        for action in start.branches[0].actions[:n_steps]:
            self._step(action, "in a replay")
        return self._mark("on the way")

    def _play_to_the_end(self) -> bool:
        for _ in range(0 if self._is_over else 4 * self._n_short):
            self._step(self._draw_action(), "")
            if self._is_over:
                break
        return self._is_over

    def _take_turns(self, point: _Point) -> None:
        """Let two branches take turns, restored before each step and captured after it."""
        states = [(point.state, point.noise)] * 2
        for t in range(min(_N_TURNS, self._n_short)):
            if self._is_late():
                break
            for i, branch in enumerate(point.branches[-2:]):
                if t < len(branch.actions):
                    self._restore(*states[i], in_place=i > 0)
                    self._compare(point, t, branch, self._step(branch.actions[t], "in a replay"))
                    if not self._is_over:
                        states[i] = self._capture(), self.noise.capture()
        self._n_branches += 2

    def _mark(self, place: str) -> _Point:
        if place not in self._places:
            self._places.append(place)
        state = self._capture()
        return _Point(place, state, self.noise.capture(), describe_contents(self._layers, self._uncompared))

    def _record(self, point: _Point, n_steps: int, *, is_there: bool = False, repeats: bool = False) -> None:
        """Play a new branch.

        :param is_there: Whether the environment came to the point itself, without a restore.
        :param repeats: Whether to take each action several times.
        """
        if not is_there:
            self._go_to(point)
        branch = _Branch([], [])
        while len(branch.steps) < n_steps and not self._is_over:
            action = self._draw_action()
            if repeats and len(branch.actions) % _N_REPEATS and get_action_masks(self._env) is None:
                action = branch.actions[-1]
            branch.actions.append(action)
            branch.steps.append(self._step(action, "" if is_there else "after a restore"))
        point.branches.append(branch)
        self._n_recorded += len(branch.steps)
        self._longest = max(self._longest, len(branch.steps))

    def _replay(self, point: _Point, index: int) -> None:
        self._restore(point.state, point.noise, in_place=self._n_branches % 2 > 0)
        branch = point.branches[index]
        for t, action in enumerate(branch.actions):
            self._compare(point, t, branch, self._step(action, "in a replay"))
        self._n_branches += 1

    def _compare(self, point: _Point, t: int, branch: _Branch, step: tuple[Any, ...]) -> None:
        self._n_replayed += 1
        if is_same(branch.steps[t], step):
            return
        self._go_to(point)
        differing = list_differences(point.contents, describe_contents(self._layers, self._uncompared))
        raise NotBranchableError(
            f"{name_env(self._env)} is not restored exactly: step {t} of a replay "
            f"{describe_difference(branch.steps[t], step)}. {explain(self._subject, differing)}"
        )

    def _go_to(self, point: _Point) -> None:
        self._restore(point.state, point.noise)

    def _reset(self, seed: int | None) -> None:
        problem, kind = "reset() failed after a restore", NotBranchableError
        if not self._has_restored:
            problem, kind = "reset() failed when it was tried out", FailedResetError
        with naming(self._env, problem, kind):
            returned: Any = self._env.reset(seed=seed)
            # What else it must be is checked elsewhere. The info is for people.
            self._first_observation = copy.deepcopy(returned[0] if isinstance(returned, tuple) else returned)
        self._is_over = False

    def _step(self, action: Any, when: str) -> tuple[Any, ...]:
        problem, kind = f"step() failed {when or 'after a restore'}", NotBranchableError
        if not (when or self._has_restored):
            problem, kind = "step() failed when it was tried out with random actions", FailedTrialError
        given = copy.deepcopy(action)  # which an environment may change in place, and a replay needs
        with naming(self._env, problem, kind):
            begin = time.perf_counter()
            outcome = self._env.step(given)
            self._seconds["step"].append(time.perf_counter() - begin)
            self._is_over = bool(outcome[2] or outcome[3])
            masks = None if self._is_over else get_action_masks(self._env)
            # Copied, because an environment may return the same array every time.
            return copy.deepcopy((*outcome[:4], masks))

    def _draw_action(self, action_space: Any = None) -> Any:
        with naming(self._env, "action_masks() failed"):
            return sample_action(action_space or self._action_space, get_action_masks(self._env))

    def _capture(self) -> Any:
        with naming(self._env, "its state could not be captured"):
            begin = time.perf_counter()
            state = self._shipment.pack(self._subject.capture())
            self._seconds["capture"].append(time.perf_counter() - begin)
        return state

    def _restore(self, state: Any, noise: dict[str, Any], *, in_place: bool = True) -> None:
        self._put_back(state, in_place=in_place)
        self.noise.restore(noise)
        self._is_over = False

    def _put_back(self, state: Any, *, in_place: bool = True) -> None:
        with naming(self._env, "a captured state could not be restored"):
            begin = time.perf_counter()
            self._has_restored = True
            self._subject.restore(self._shipment.unpack(state), in_place=in_place)
            self._seconds["restore"].append(time.perf_counter() - begin)
