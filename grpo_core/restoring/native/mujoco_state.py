"""The state of MuJoCo's ``MjData``, and what environments edit in an ``MjModel``."""

import sys
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Numbers that MuJoCo computes from the positions before a step, so that they lag behind them afterwards. Environments
# read them before they step: to command a mocap body, or to reward a difference.
_LATE = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "xiquat", "xanchor", "xaxis", "geom_xpos", "geom_xmat", "geom_xquat"),
    *("site_xpos", "site_xmat", "site_xquat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir", "wrap_xpos"),
    *("flexvert_xpos", "subtree_com", "subtree_linvel", "subtree_angmom", "cvel", "cacc", "cfrc_int", "cfrc_ext"),
    *("actuator_length", "actuator_velocity", "actuator_force", "ten_length", "ten_velocity", "sensordata", "energy"),
    *("act_dot", "qacc", "qacc_smooth", "qfrc_actuator", "qfrc_passive", "qfrc_bias", "qfrc_constraint"),
    *("qfrc_smooth", "qfrc_inverse"),
)
# Arrays of the model that are never edited: meshes and pictures, which are also the large ones. A height field is
# edited where the ground is drawn anew.
_MAX_WATCHED_BYTES = 1 << 16
_ALWAYS_WATCHED = ("hfield_data",)
# Besides numbers with a point, environments edit what may touch what.
_WATCHED_INTEGERS = ("geom_contype", "geom_conaffinity", "eq_active0")
_WATCHED_OPTIONS = ("timestep", "density", "viscosity", "impratio")

#: The module of MuJoCo's structures.
STRUCTS_MODULE = "mujoco._structs"

_Floats = npt.NDArray[np.float64]
_Bytes = npt.NDArray[np.uint8]


class Window(NamedTuple):
    """A part of an engine's memory that an array shows.

    :param name: The engine's array that it lies in.
    :param offset: Bytes from the beginning of that array.
    """

    name: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any


class _Struct:
    """The arrays of one of MuJoCo's structures.

    :param struct: The ``MjModel`` or ``MjData``.
    """

    def __init__(self, struct: Any) -> None:
        self._arrays = _list_arrays(struct)
        by_address = sorted((_get_address(array), name) for name, array in self._arrays.items() if array.size)
        self._addresses = [address for address, _ in by_address]
        self._names = [name for _, name in by_address]

    def find_window(self, array: Any) -> Window | None:
        """Say which part of the structure's memory an array shows; None if it shows other memory."""
        address = _get_address(array)
        i = bisect_right(self._addresses, address) - 1
        if i < 0:
            return None
        name, offset = self._names[i], address - self._addresses[i]
        if offset >= self._arrays[name].nbytes:
            return None
        return Window(name, offset, array.shape, array.strides, array.dtype)

    def open_window(self, window: Window) -> Any:
        """Return an array that shows a part of the structure's memory."""
        name, offset, shape, strides, dtype = window
        return np.ndarray(shape, dtype, self._arrays[name].reshape(-1).view(np.uint8), offset, strides)


class _Block:
    """Arrays of an engine, read and written as one.

    :param arrays: The arrays, of one type once they are flat.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays
        ends = np.cumsum([array.size for array in arrays], dtype=int).tolist()
        self._parts = [slice(end - array.size, end) for array, end in zip(arrays, ends, strict=True)]

    def read(self, out: Any = None) -> Any:
        """Copy the arrays, one after the other, into one."""
        return np.concatenate(self._arrays, out=out)

    def write(self, values: Any) -> None:
        """Put such a copy back."""
        for array, part in zip(self._arrays, self._parts, strict=True):
            array[:] = values[part]


class MujocoData(_Struct):
    """Copies what the next steps depend on: MuJoCo's integration state, and the numbers that lag behind it.

    :param data: The ``mujoco.MjData``.
    """

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        #: Whether steps end with ``mj_step1`` and begin with ``mj_step2``, as those of dm_control do.
        self.is_half_stepped = False
        self._mujoco = sys.modules["mujoco"]
        self._parts = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._model, self._data = data.model, data
        self._size = self._mujoco.mj_stateSize(data.model, self._parts)
        self._late = _Block([self._arrays[name].reshape(-1) for name in _LATE if name in self._arrays])

    def capture(self) -> tuple[_Floats, _Floats]:
        """Copy the state."""
        physics = np.empty(self._size)
        self._mujoco.mj_getState(self._model, self._data, physics, self._parts)
        return physics, self._late.read()

    def restore(self, state: tuple[_Floats, _Floats]) -> None:
        """Put a captured state back."""
        physics, late = state
        self._mujoco.mj_setState(self._model, self._data, physics, self._parts)
        if self.is_half_stepped:
            self._mujoco.mj_step1(self._model, self._data)
        self._late.write(late)


class MujocoModel(_Struct):
    """Copies what a reset or a step has edited in the model.

    :param model: The ``mujoco.MjModel``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._options = model.opt
        arrays = [*_list_arrays(model.opt).values(), *self._list_watched()]
        self._block = _Block([array.reshape(-1).view(np.uint8) for array in arrays if array.size])
        self._original: _Bytes = self._block.read()
        # The last copies that captures and restores compared with; states that are equal share one.
        self._last = self._original
        self._now = self._original.copy()

    def _list_watched(self) -> list[Any]:
        return [
            array
            for name, array in self._arrays.items()
            if name in _ALWAYS_WATCHED
            or (array.nbytes <= _MAX_WATCHED_BYTES and (array.dtype.kind == "f" or name in _WATCHED_INTEGERS))
        ]

    def capture(self) -> tuple[_Bytes | None, tuple[float, ...]]:
        """Copy the edited arrays; None if they are as they were at first."""
        self._block.read(self._now)
        if not np.array_equal(self._now, self._last):
            self._last = self._original if np.array_equal(self._now, self._original) else self._now.copy()
        return None if self._last is self._original else self._last, self._read_options()

    def restore(self, state: tuple[_Bytes | None, tuple[float, ...]]) -> None:
        """Put the edited arrays back."""
        edited, options = state
        wanted = self._original if edited is None else edited
        self._block.read(self._now)
        if not np.array_equal(self._now, wanted):
            self._block.write(wanted)
        if options != self._read_options():
            for name, value in zip(_WATCHED_OPTIONS, options, strict=True):
                setattr(self._options, name, value)

    def _read_options(self) -> tuple[float, ...]:
        options = self._options
        return tuple([getattr(options, name) for name in _WATCHED_OPTIONS])


def is_model(value: Any) -> bool:
    """Return whether a value is an ``MjModel``."""
    return type(value).__module__ == STRUCTS_MODULE and type(value).__name__ == "MjModel"


def _list_arrays(struct: Any) -> dict[str, Any]:
    """List the arrays of one of MuJoCo's structures by name."""
    fields = {name: getattr(struct, name) for name in dir(struct) if not name.startswith("_")}
    return {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}


def _get_address(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
