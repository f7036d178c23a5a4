"""The simulators' part of a checkpoint: their states, those that groups go on from, and all random generators."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.banks.vec_wrappers import read_vec_wrappers
from grpo_core.checkpoints.facts import Caveat
from grpo_core.checkpoints.objects import (
    Node,
    Reader,
    UnknownObjectError,
    Writer,
    is_described_generator,
    list_packages,
)
from grpo_core.environments.nested import list_nested_envs
from grpo_core.groups.anchors import Anchors
from grpo_core.groups.archive import AnchorArchive
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.generators import find_noise, get_generator_state
from grpo_core.restoring.object_graph import walk
from grpo_core.restoring.simulator import Simulator
from grpo_core.restoring.state import access_own_methods
from grpo_core.update.seeding import capture_process_wide, restore_process_wide

# Objects looked at in each environment: nearest first, so that a large table does not make each checkpoint slow.
_MAX_SEARCHED = 2_000
# Types of values that a state always holds itself.
_HELD = (bool, int, float, str, bytes, list, tuple, dict, set, np.ndarray, np.generic)


def describe(env: VecEnv, anchors: Anchors, mode: str) -> tuple[Node | None, list[npt.NDArray[Any]], Caveat | None]:
    """Describe the simulators, the states that groups go on from, and all random generators of the environments.

    :param mode: How groups are played, ``"branch"`` or ``"episode"``.
    :return: The description or None; the arrays that it refers to; and what is missing.
    """
    caveat = None
    archive = None if anchors.archive is None else [*anchors.archive.to_state(), anchors.n_archived]
    try:
        envs = _list_envs(env)
        rest = [[_list_noise(each) for each in envs], capture_process_wide(), anchors.starts, archive]
        try:
            live = [Simulator(each).capture() for each in envs]
        except Exception as error:  # code of the environment, such as its capture_state
            live, caveat = [], _miss_states(mode, error)
        packages, fixtures = _list_packages(envs), _find_fixtures(envs)
        beside, of_beside = _capture_beside(envs)
        if beside:
            try:
                return _write(packages, fixtures, [rest, live, beside], caveat or of_beside)
            except (UnknownObjectError, RecursionError) as error:
                of_beside = _miss_resets(error)
        return _write(packages, fixtures, [rest, live, []], caveat or of_beside)
    except UnknownObjectError as error:
        return None, [], Caveat(str(error), is_certain=True)
    except RecursionError:
        return None, [], Caveat("the simulators' states are nested too deep to be described", is_certain=True)


def _write(
    packages: Collection[str], fixtures: Mapping[str, Any], parts: Sequence[Any], caveat: Caveat | None
) -> tuple[Node, list[npt.NDArray[Any]], Caveat | None]:
    writer = Writer(packages, fixtures)
    return [[writer.describe(part) for part in parts], writer.objects], writer.arrays, caveat


def _list_noise(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """Return an environment's random generators, by where they are; only the states of those that no file holds."""
    found = find_noise(env, process_wide=False).find()
    return {
        path: generator if is_described_generator(generator) else get_generator_state(generator)
        for path, generator in found.items()
    }


def _capture_beside(envs: Sequence[gym.Env[Any, Any]]) -> tuple[list[Any], Caveat | None]:
    """Copy all attributes of environments that capture themselves: they may leave out what only resets change.

    :return: The copies, None for other environments; none at all if there is none, or with a caveat if one failed.
    """
    beside = []
    try:
        for env in map(_unwrap, envs):
            has_own_methods = any(access_own_methods(layer) is not None for layer in list_nested_envs(env))
            beside.append(Simulator(env, uses_own_methods=False).capture() if has_own_methods else None)
    except Exception as error:  # code of the environment
        return [], _miss_resets(error)
    return ([] if all(state is None for state in beside) else beside), None


def _miss_resets(error: Exception) -> Caveat:
    reason = f"the environment captures its own state, so what only its resets change is not kept ({error})"
    return Caveat(reason, is_certain=False)


def _unwrap(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return env.env if isinstance(env, RestorableWrapper) else env


def _miss_states(mode: str, error: Exception) -> Caveat:
    """Say what it means that an environment's state cannot be captured: episodes from seeded resets hardly need it."""
    if mode != "episode":
        reason = str(error) if isinstance(error, NotBranchableError) else f"{type(error).__name__}: {error}"
        return Caveat(reason, is_certain=True)
    reason = "the simulators cannot be captured; training goes on exactly if reset(seed) forgets earlier episodes"
    return Caveat(reason, is_certain=False)


def restore(env: VecEnv, anchors: Anchors, described: Node, arrays: Sequence[npt.NDArray[Any]]) -> Caveat | None:
    """Put back what ``describe`` described.

    :return: What is missing here.
    :raises UnknownObjectError: If the states hold what is not here, or are of environments in other processes.
    """
    envs = _list_envs(env)
    (of_rest, of_live, of_beside), objects = described
    reader = Reader(objects, arrays, _list_packages(envs), _find_fixtures(envs))
    generators, process_wide, starts, archive = reader.make(of_rest)
    if reader.lost:
        raise UnknownObjectError(f"{reader.lost[0]} held what is not here")
    live, beside = reader.make(of_live), reader.make(of_beside)
    for each, state in zip(map(_unwrap, envs), beside, strict=False):
        if state is not None:
            Simulator(each, uses_own_methods=False).restore(state)
    for each, state in zip(envs, live, strict=False):  # none where none could be captured
        Simulator(each).restore(state)
    lost = [path for each, noise in zip(envs, generators, strict=True) for path in _restore_noise(each, noise)]
    anchors.starts, anchors.archive = starts, None
    if archive is not None:
        *state, anchors.n_archived = archive
        anchors.archive = AnchorArchive.from_state(state)
    restore_process_wide(process_wide)
    if lost:
        return Caveat(f"the environments have no random generator {' and '.join(lost)} here", is_certain=True)
    if reader.lost:
        reason = f"{reader.lost[0]} held what is not here; training goes on exactly if reset(seed) sets it"
        return Caveat(reason, is_certain=False)
    return None


def _restore_noise(env: gym.Env[Any, Any], saved: Mapping[str, Any]) -> list[str]:
    """Put the states of random generators back, and generators in free places.

    :return: Where there are none, and none could be put.
    """
    noise = find_noise(env, process_wide=False)
    layers = list_nested_envs(env)
    for path in saved.keys() - noise.find().keys():
        places = dict(walk(layers, (), _MAX_SEARCHED, shared=False))
        owner, _, name = path.rpartition(".")
        held = getattr(places.get(owner), "__dict__", None)
        if (
            name.isidentifier()
            and isinstance(held, dict)
            and held.get(name) is None
            and is_described_generator(saved[path])
        ):
            held[name] = saved[path]
    states = {
        path: get_generator_state(value) if is_described_generator(value) else value for path, value in saved.items()
    }
    unfit = noise.restore(states)
    return sorted(path for path in states if path in unfit or path not in noise.find())


def _list_envs(env: VecEnv) -> list[gym.Env[Any, Any]]:
    base, _ = read_vec_wrappers(env)
    if not isinstance(base, DummyVecEnv):
        raise UnknownObjectError(f"the states of environments in a {type(base).__name__} are in other processes")
    return base.envs


def _find_fixtures(envs: Sequence[gym.Env[Any, Any]]) -> dict[str, Any]:
    """Find the objects that copies of the environments' attributes leave in place, such as spaces, by their paths."""
    held = {
        f"{i}: {j}.{name}": value
        for i, env in enumerate(envs)
        for j, layer in enumerate(list_nested_envs(env))
        for name, value in vars(layer).items()
    }
    walks = ((i, walk(list_nested_envs(env), (), _MAX_SEARCHED)) for i, env in enumerate(envs))
    held |= {f"{i}: {place}": value for i, found in walks for place, value in found}
    return {place: value for place, value in held.items() if not isinstance(value, _HELD)}


def _list_packages(envs: Sequence[gym.Env[Any, Any]]) -> set[str]:
    return list_packages({type(layer) for env in envs for layer in list_nested_envs(env)})
