"""An environment and its wrappers, whose attributes are copied together so that what they share stays shared."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np

from grpo_core.environments.nested import Env
from grpo_core.restoring.copying.copier import Copier, CopyError, is_tool
from grpo_core.restoring.copying.originals import Noted, Originals
from grpo_core.restoring.native.parts import Memo, NativeParts

# Whether an attribute, by name and value, is part of a captured state.
IsState = Callable[[str, Any], bool]

#: Types of values that no step changes in place.
IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset, np.generic)
#: In the place of an object that has not travelled with the state.
ELSEWHERE = object()


@dataclass(frozen=True)
class LayerReference:
    """Placeholder in a captured state for what is not copied: a layer, or one of its attributes.

    :param height: How many layers are further inside.
    :param name: Name of the attribute; None for the layer itself.
    """

    height: int
    name: str | None = None

    def __deepcopy__(self, memo: Memo) -> Any:
        env = memo["envs"][-1 - self.height]
        return env if self.name is None else getattr(env, self.name)


class KeptAttribute:
    """Placeholder in a captured state for an attribute that is put back as it is, without a copy.

    Where the state travels to, it stands for what the attribute holds there.

    :param height: How many layers are further inside.
    :param value: What it holds; None for a tool, which is left as it is by then.
    """

    __slots__ = ("height", "name", "value")

    def __init__(self, height: int, name: str, value: Any = ELSEWHERE) -> None:
        self.height, self.name, self.value = height, name, value

    def __deepcopy__(self, memo: Memo) -> Any:
        has_value = not (self.value is None or self.value is ELSEWHERE)
        return self.value if has_value else getattr(memo["envs"][-1 - self.height], self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptAttribute, (self.height, self.name, *([None] if self.value is None else []))


@dataclass(frozen=True)
class LayerMethod:
    """Placeholder for a method of a layer, as a state machine keeps the one that comes next.

    :param height: How many layers are further inside.
    """

    height: int
    name: str

    def __deepcopy__(self, memo: Memo) -> Any:
        return getattr(memo["envs"][-1 - self.height], self.name)


class Layers:
    """The layers of one environment: its wrappers, the outermost first, and itself.

    Within ``together`` an object that two layers hold is copied once.

    :param envs: The layers, see ``list_nested_envs``.
    :param keeps_originals: Whether restores write into the objects that were there at first.
    """

    def __init__(self, envs: Sequence[Env], keeps_originals: bool = True) -> None:
        self.envs = envs
        self._keeps_originals = keeps_originals
        self._ids = {id(env) for env in envs}
        #: Physics engines among the attributes, whose own state has to be captured and restored after the attributes.
        self.native = NativeParts()
        self._copier = Copier(self.native)
        #: The objects that restores write into.
        self.originals = Originals(self._copier)
        self._is_state: dict[int, IsState] = {}
        self._left_out: dict[int, Set[str]] = {}
        self._kept: dict[int, dict[str, KeptAttribute]] = {}
        # Made once: each capture takes them.
        self._references: dict[tuple[int, str | None], LayerReference] = {}
        self._memo: Memo | None = None
        self._noted: Noted | None = None
        self._has_failed = False

    @property
    def are_copied(self) -> bool:
        """Whether attributes of any layer are copied all together."""
        return bool(self._is_state)

    def include(self, env: Env, is_state: IsState, left_out: Set[str]) -> None:
        """Copy attributes of a layer; references to all others stay references.

        :param left_out: Names of those that a restore leaves alone.
        """
        self._is_state[id(env)], self._left_out[id(env)], self._kept[id(env)] = is_state, left_out, {}

    def is_layer(self, value: Any) -> bool:
        """Return whether a value is one of the layers."""
        return id(value) in self._ids

    @contextmanager
    def together(self, *, is_capture: bool, noted: Noted | None = None) -> Iterator[None]:
        """Let all copies made inside belong to one state.

        :param noted: What ``note`` returned when it was captured; None lets copies replace all objects.
        """
        self._memo, self._noted, self._has_failed = self._make_memo(is_capture), noted, False
        try:
            yield
            self._copier.finish(self._memo)
        finally:
            self._memo = self._noted = None

    def note(self) -> Noted | None:
        """Map each copy made since ``together`` began, to capture a state, to its original."""
        if self._memo is None or not self._keeps_originals:
            return None
        if self._has_failed:  # a part of what failed may have been copied
            return None
        return self.originals.note(self.envs, self._memo)

    def list_generators(self) -> list[Any]:
        """List the random generators that have been copied since ``together`` began: those inside other objects."""
        return [] if self._memo is None else self._memo.get("generators", [])

    def list_kept(self, env: Env) -> Mapping[str, KeptAttribute]:
        """List the attributes of a layer that the latest capture does not copy, and a restore puts back."""
        return self._kept[id(env)]

    def copy(self, values: dict[str, Any], *, is_capture: bool) -> dict[str, Any]:
        """Copy attributes of a layer, from it or from a captured state.

        :raises CopyError: If one cannot be copied.
        """
        memo = self._make_memo(is_capture) if self._memo is None else self._memo
        name, copied = "", dict[str, Any]()
        if not is_capture and self._noted is not None:
            noted, self._noted = self._noted, None
            self.originals.write(noted, memo)
        try:
            for name, value in values.items():
                is_own_method = is_capture and isinstance(value, MethodType) and self.is_layer(value.__self__)
                copied[name] = self._refer(value) if is_own_method else self._copier.copy(value, memo)
        except CopyError as error:
            self._has_failed = True
            error.name = name
            error.lead(name)
            raise
        return copied

    def _refer(self, method: MethodType) -> LayerMethod:
        heights = [height for height, env in enumerate(reversed(self.envs)) if env is method.__self__]
        return LayerMethod(heights[0], method.__func__.__name__)

    def _refer_to(self, height: int, name: str | None) -> LayerReference:
        reference = self._references.get((height, name))
        if reference is None:
            reference = self._references[height, name] = LayerReference(height, name)
        return reference

    def _make_memo(self, is_capture: bool) -> Memo:
        if not is_capture:
            return {"envs": self.envs, "native": self.native}
        memo: Memo = {}
        for height, env in enumerate(reversed(self.envs)):
            memo[id(env)] = self._refer_to(height, None)
            is_state, left_out = self._is_state.get(id(env)), self._left_out.get(id(env))
            before, kept = self._kept.get(id(env), {}), dict[str, KeptAttribute]()
            for name, value in env.__dict__.items():
                if isinstance(value, IMMUTABLE) or (is_state is not None and is_state(name, value)):
                    continue
                # A layer's own object, not the one that a wrapper further outside took from it.
                if left_out is None or name in left_out:
                    memo.setdefault(id(value), self._refer_to(height, name))
                    continue
                reference = before.get(name)
                if reference is None or reference.value is not value:
                    reference = KeptAttribute(height, name, None if is_tool(value) else value)
                kept[name] = reference
                memo.setdefault(id(value), reference)
            if left_out is not None:
                self._kept[id(env)] = kept
        return memo
