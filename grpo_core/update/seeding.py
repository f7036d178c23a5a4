"""Draw from torch's process-wide generator without leaving a trace in it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_LOCK = threading.Lock()


@contextmanager
def borrow_torch_generator(rng: np.random.Generator) -> Iterator[None]:
    """Seed torch's generator from a model's own inside the block, and put it back afterwards.

    torch initialises layers and draws actions from one process-wide generator. Under a lock, models in other threads
    neither see nor disturb the seed.

    :param rng: The model's generator; one number is drawn from it.
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        yield
