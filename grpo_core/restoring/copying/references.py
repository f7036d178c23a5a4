"""What stands in a captured state for what only refers to an object: a view of an array, or a weak reference.

Whether the object is copied at all, for its own sake, is known once everything is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Copies a part of a captured state for the environment, or returns the copy that was made already.
Copy = Callable[[Any], Any]


@dataclass
class ArrayView:
    """Stands for an array that shows a small part of another one.

    :param values: A copy.
    :param offset: Bytes from the beginning of the other array.
    :param base: The copy of the other array; None if that is not copied.
    """

    values: Any
    offset: int
    strides: tuple[int, ...]
    base: Any = None

    def lead_to(self, copied: Any) -> None:
        """Take the copy of the other array."""
        if type(copied) is np.ndarray:
            self.base = copied

    def make(self, copy: Copy) -> Any:
        """Return such an array for the environment."""
        if self.base is None:
            return self.values.copy(order="K")
        return np.ndarray(self.values.shape, self.values.dtype, copy(self.base), self.offset, self.strides)


def measure_offset(view: Any, base: Any) -> int:
    """Return how many bytes from the beginning of an array a view of it begins."""
    offset: int = view.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return offset
