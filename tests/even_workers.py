"""What a forkserver of the tests imports in place of ``service.workers.preload``: its workers keep their priority.

They would wait behind the tests that run beside theirs, for most of the time that these take.
"""

import gc
import importlib
import os
import sys

# Steps that values are fitted to where they are not the point, and minibatches; thousands and hundreds otherwise.
BRIEF_VALUES = {
    "service.training.evaluation.value_check._MIN_STEPS": 100,
    "service.training.evaluation.value_check._MAX_STEPS": 100,
    "grpo_core.values.fit._MIN_ITERATIONS": 8,
    "grpo_core.values.fit._MAX_ITERATIONS": 8,
}

# What the modules of environments and rewards import, which every worker would do anew for more than a second.
_MODULES = ("tests.environments", "tests.models", "tests.support", "hypothesis")


def _prepare() -> None:
    nice, os.nice = os.nice, lambda _increment: 0
    try:
        importlib.import_module("service.workers.preload")
    finally:
        os.nice = nice
    for name, number in BRIEF_VALUES.items():
        module, _, constant = name.rpartition(".")
        vars(importlib.import_module(module))[constant] = number
    for name in _MODULES:
        importlib.import_module(name)
    gc.freeze()  # as service.workers.preload does after its own imports


if "multiprocessing.forkserver" in " ".join(sys.orig_argv):
    _prepare()
