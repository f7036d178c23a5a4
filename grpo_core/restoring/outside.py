"""Keep what code outside of an environment sets on it, which a restore would undo for good.

A curriculum or an opponent is set on an environment between two steps: by a callback, through ``env_method`` or
``set_attr``, or between two calls of ``learn``. Where attributes are restored by copies, the next branch would begin
without it, and so would all that follow.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_core.environments.nested import Env, list_nested_envs
from grpo_core.restoring.layers import IMMUTABLE
from grpo_core.restoring.native.mujoco_state import MujocoModel, is_model
from grpo_core.restoring.state import BOOKKEEPING, CONSTANTS, DRAWING_NAMES, access_own_methods, is_known

# What these packages' environments hold beside their engine's state is never restored.
_ENGINES = ("gymnasium.envs.mujoco.", "ale_py.")
_LEFT_OUT = CONSTANTS | DRAWING_NAMES
# Lists, dicts, sets and arrays up to this size are compared after every step.
_MAX_ITEMS = 64
_MAX_BYTES = 4096

# An attribute: the place of its layer, and its name.
_Place = tuple[int, str]


class OutsideChanges:
    """Keeps what is set from outside on environments whose attributes are restored by copies.

    Noticed is an attribute that something else is assigned to, a small list, dict, set or array that is written to, and
    an edited MuJoCo model; what happens further inside is not. Environments all of whose layers are known, or that
    capture and restore themselves, are left alone.

    :param envs: The environments.
    """

    def __init__(self, envs: Sequence[Env]) -> None:
        self._layers = [layer for env in envs for layer in _list_copied(env)]
        self._models = [
            MujocoModel(value) for layer in self._layers for value in vars(layer).values() if is_model(value)
        ]
        self._held: list[dict[str, Any]] = []
        self._contents: dict[_Place, Any] = {}
        self._edited: list[Any] = []
        self._kept: dict[_Place, Any] = {}
        self._written: dict[_Place, Any] = {}
        self._kept_models: dict[int, Any] = {}

    def look(self) -> None:
        """Remember what the environments hold: whatever is another at the next ``keep`` was set from outside."""
        self._held = [dict(vars(layer)) for layer in self._layers]
        self._contents = {
            (i, name): value.copy()
            for i, held in enumerate(self._held)
            for name, value in held.items()
            if _is_small(value) and name not in _LEFT_OUT
        }
        self._edited = [model.capture() for model in self._models]

    def keep(self) -> None:
        """Keep what was set since the latest ``look``."""
        for i, (layer, held) in enumerate(zip(self._layers, self._held, strict=False)):  # none before the first look
            now = vars(layer)
            if len(now) == len(held) and all(map(operator.is_, now.values(), held.values())):
                continue
            for name, value in now.items():
                if name not in _LEFT_OUT and (name not in held or not _is_same(held[name], value)):
                    self._kept[i, name] = value
                    self._written.pop((i, name), None)
        for (i, name), contents in self._contents.items():
            value = self._layers[i].__dict__.get(name)
            if value is not None and value is self._held[i][name] and not _holds(value, contents):
                self._written[i, name] = value.copy()
        for i, (model, before) in enumerate(zip(self._models, self._edited, strict=False)):
            edited = model.capture()
            if edited[0] is not before[0] or edited[1] != before[1]:  # copies of what is equal are the same
                self._kept_models[i] = edited

    def apply(self) -> bool:
        """Set on the environments what was kept, and return whether there was anything."""
        was_set = bool(self._kept or self._written or self._kept_models)
        for (i, name), value in self._kept.items():
            vars(self._layers[i])[name] = value
        for (i, name), contents in self._written.items():
            attributes = vars(self._layers[i])
            if not _write(attributes.get(name), contents):
                attributes[name] = contents
        for i, edited in self._kept_models.items():
            self._models[i].restore(edited)
        self._kept, self._written, self._kept_models = {}, {}, {}
        return was_set


def _list_copied(env: Env) -> list[Env]:
    """List the layers that are restored by copies, with those inside them, whose parameters are then, too."""
    layers: list[Env] = []
    for layer in list_nested_envs(env):
        if access_own_methods(layer) is not None:
            break  # it answers for all that it wraps
        layers.append(layer)
    for i, layer in enumerate(layers):
        if not is_known(layer) and not type(layer).__module__.startswith(_ENGINES):
            return [inner for inner in layers[i:] if type(inner) not in BOOKKEEPING]
    return []


def _is_same(held: Any, value: Any) -> bool:
    return held is value or (isinstance(value, IMMUTABLE) and type(held) is type(value) and bool(held == value))


def _is_small(value: Any) -> bool:
    kind = type(value)
    if kind is np.ndarray:
        return bool(value.nbytes <= _MAX_BYTES and not value.dtype.hasobject)
    return kind in (list, dict, set) and len(value) <= _MAX_ITEMS


def _holds(value: Any, contents: Any) -> bool:
    """Return whether a list, dict, set or array holds just what it held; its items are not looked into."""
    if isinstance(value, np.ndarray):
        return bool(value.shape == contents.shape and value.tobytes() == contents.tobytes())
    if isinstance(value, set):
        return bool(value == contents)
    if len(value) != len(contents):
        return False
    if isinstance(value, dict):
        return all(key in contents and _is_same(contents[key], item) for key, item in value.items())
    return all(map(_is_same, contents, value))


def _write(value: Any, contents: Any) -> bool:
    """Write contents into the object that an environment holds now, which others of its layers may hold too.

    :return: Whether that was possible.
    """
    if type(value) is not type(contents):
        return False
    if isinstance(value, np.ndarray):
        if value.shape != contents.shape or not value.flags.writeable:
            return False
        value[...] = contents
    elif isinstance(value, list):
        value[:] = contents
    else:
        value.clear()
        value.update(contents)
    return True
