"""Arrays in ``numpy.save``'s format, strangers' too: NumPy's reader would pass their headers to Python's parser."""

import io
import math
import re
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

_HEAD = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': *'(?P<dtype>[<>|](?:f[248]|[iu][1248]|b1))', *"
    rb"'fortran_order': *(?P<is_fortran_order>True|False), *"
    rb"'shape': *\((?P<shape>(?:\d{1,19}(?:, *|(?=\))))*)\),? *\} *\n",
    re.DOTALL,
)
_MAX_HEAD_BYTES = 1024


class ArrayHead(NamedTuple):
    """The claims of an array's header.

    :param offset: Where in the content the array itself begins.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int

    @property
    def n_bytes(self) -> int:
        """Size of the whole content, if the claim is true."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def view(self, content: bytes) -> npt.NDArray[Any]:
        """Return the array as a view of a content of ``n_bytes``."""
        return np.frombuffer(content, self.dtype, offset=self.offset).reshape(self.shape, order=self.order)


def to_npy(array: npt.ArrayLike) -> bytes:
    """Write an array of numbers or flags, in the order of its own memory."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def read_head(content: bytes) -> ArrayHead | None:
    """Read the header of an array without running anything in it.

    :param content: The file.
    :return: None if it is no array of real numbers or flags as ``numpy.save`` writes it, or its header is too long.
    """
    head = _HEAD.match(content, 0, _MAX_HEAD_BYTES)
    if head is None or int.from_bytes(head["length"], "little") != head.end() - head.end("length"):
        return None
    shape = tuple(int(n) for n in head["shape"].split(b",") if n.strip())
    order: Literal["C", "F"] = "F" if head["is_fortran_order"] == b"True" else "C"
    return ArrayHead(np.dtype(head["dtype"].decode()), shape, order, head.end())
