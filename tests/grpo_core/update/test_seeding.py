"""Process-wide generators: threads do not disturb each other's draws from torch's, and all can be put back."""

import random
import threading

import numpy as np
import torch

from grpo_core.update.seeding import (
    borrow_torch_generator,
    capture_process_wide,
    lock_torch_generator,
    restore_process_wide,
)


def test_a_state_put_back_by_another_thread_waits_until_the_generator_is_not_borrowed() -> None:
    before = torch.get_rng_state()
    other = torch.Generator().manual_seed(1).get_state()

    def put_back() -> None:
        with lock_torch_generator():
            torch.set_rng_state(other)

    thread = threading.Thread(target=put_back)
    with borrow_torch_generator(np.random.default_rng(0), torch.device("cpu")):
        thread.start()
        thread.join(0.05)
        drawn = torch.rand(3)
    thread.join()
    assert torch.equal(torch.get_rng_state(), other)
    with borrow_torch_generator(np.random.default_rng(0), torch.device("cpu")):
        assert torch.equal(torch.rand(3), drawn)
    torch.set_rng_state(before)


def test_all_process_wide_generators_are_put_back() -> None:
    before = capture_process_wide()
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    for _ in range(2):  # what was captured is still whole
        restore_process_wide(before)
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn
    restore_process_wide(before)
