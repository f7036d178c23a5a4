"""Keep what torch assumes by default while code of an environment runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def keep_torch_defaults() -> Iterator[None]:
    """Put back torch's default dtype, and whether it records gradients, at the end of the block.

    An environment that computes with torch may change both for itself; a policy needs what was there before.
    """
    dtype, has_gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(has_gradients)
