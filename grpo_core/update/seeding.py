"""Draw from the process-wide random generators without leaving a trace in them."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from grpo_core.restoring.generators import Noise

# A policy of the user's own may ask for another prediction in the middle of its own.
_LOCK = threading.RLock()


@contextmanager
def lock_torch_generator() -> Iterator[None]:
    """Let no other thread borrow torch's generator inside the block.

    Whoever puts its state back has to wait until it is not borrowed, or would change what the borrower draws.
    """
    with _LOCK:
        yield


@contextmanager
def borrow_torch_generator(rng: np.random.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's generator from a model's own inside the block, and put it back afterwards.

    torch initialises layers and draws actions from one process-wide generator per device. Under a lock, models in other
    threads neither see nor disturb the seed.

    :param rng: The model's generator; one number is drawn from it.
    :param device: Where draws are made; the CPU's generator is borrowed in any case.
    """
    devices = [device] if device.type == "cuda" else []
    with lock_torch_generator(), torch.random.fork_rng(devices=devices):
        seed = int(rng.integers(2**63))
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def capture_process_wide() -> dict[str, Any]:
    """Copy the states of the generators that all code of a process may draw from; environments do, too."""
    with lock_torch_generator():
        return {**Noise(()).capture(), "torch": torch.random.get_rng_state().numpy().copy()}


def restore_process_wide(states: Mapping[str, Any]) -> None:
    """Put back what ``capture_process_wide`` returned."""
    with lock_torch_generator():
        torch.random.set_rng_state(torch.from_numpy(states["torch"]))
    Noise(()).restore(states)
