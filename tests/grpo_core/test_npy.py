"""Arrays from anybody, in ``numpy.save``'s format."""

import io

import numpy as np
import pytest

from grpo_core.npy import read_head


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "|i1", "<u8", "|b1"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read(dtype: str, shape: tuple[int, ...], order: str) -> None:
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape), dtype, "F" if order == "F" else "C")
    file = io.BytesIO()
    np.save(file, array)
    head = read_head(file.getvalue())
    assert head is not None
    assert head.n_bytes == len(file.getvalue())
    read = head.view(file.getvalue())
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_objects_and_headers_that_are_too_long_are_not_read() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}, None]), allow_pickle=True)
    assert read_head(file.getvalue()) is None
    assert read_head(b"\x93NUMPY\x01\x00\x00\x10" + b" " * 4096) is None
    assert read_head(b"") is None
