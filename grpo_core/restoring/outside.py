"""Keep what code outside of an environment sets on it, which a restore would undo for good.

A curriculum or an opponent is set on an environment between two steps: by a callback, through ``env_method`` or
``set_attr``, or between two calls of ``learn``. Where attributes are restored by copies, the next branch would begin
without it, and so would all that follow.
"""

import operator
from collections.abc import Sequence
from typing import Any

from grpo_core.environments.nested import Env, list_nested_envs
from grpo_core.restoring.layers import IMMUTABLE
from grpo_core.restoring.state import CONSTANTS, DRAWING_NAMES, access_own_methods, is_known

# What these packages' environments hold beside their engine's state is never restored.
_ENGINES = ("gymnasium.envs.mujoco.", "ale_py.")


class OutsideChanges:
    """Keeps what is set from outside on environments whose attributes are restored by copies.

    An attribute that something else is assigned to is noticed, and a list or an array that is written to is not.
    Environments all of whose layers are known, or that capture and restore themselves, are left alone.

    :param envs: The environments.
    """

    def __init__(self, envs: Sequence[Env]) -> None:
        self._layers = [layer for env in envs for layer in _list_copied(env)]
        self._held: list[dict[str, Any]] = []
        self._kept: dict[tuple[int, str], Any] = {}

    def look(self) -> None:
        """Remember what the environments hold: whatever is another at the next ``keep`` was set from outside."""
        self._held = [dict(vars(layer)) for layer in self._layers]

    def keep(self) -> None:
        """Keep what was set since the latest ``look``."""
        for i, (layer, held) in enumerate(zip(self._layers, self._held, strict=False)):  # none before the first look
            now = vars(layer)
            if len(now) == len(held) and all(map(operator.is_, now.values(), held.values())):
                continue
            for name, value in now.items():
                if name not in CONSTANTS | DRAWING_NAMES and (name not in held or not _is_same(held[name], value)):
                    self._kept[i, name] = value

    def apply(self) -> bool:
        """Set on the environments what was kept, and return whether there was anything."""
        was_set = bool(self._kept)
        for (i, name), value in self._kept.items():
            vars(self._layers[i])[name] = value
        self._kept.clear()
        return was_set


def _list_copied(env: Env) -> list[Env]:
    """List the layers that are restored by copies, with the innermost environment, whose parameters are then, too."""
    layers: list[Env] = []
    for layer in list_nested_envs(env):
        if access_own_methods(layer) is not None:
            break  # it answers for all that it wraps
        layers.append(layer)
    copied = [layer for layer in layers if not is_known(layer) and not type(layer).__module__.startswith(_ENGINES)]
    if copied and copied[-1] is not layers[-1]:
        copied.append(layers[-1])
    return copied


def _is_same(held: Any, value: Any) -> bool:
    return held is value or (isinstance(value, IMMUTABLE) and type(held) is type(value) and bool(held == value))
