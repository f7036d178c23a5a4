"""What a forkserver of the tests imports in place of ``service.workers.preload``: its workers keep their priority.

They would wait behind the tests that run beside theirs, for most of the time that these take.
"""

import importlib
import os
import sys

# Steps that values are fitted to where they are not the point; thousands otherwise.
N_VALUE_STEPS = 100


def _prepare() -> None:
    nice, os.nice = os.nice, lambda _increment: 0
    try:
        importlib.import_module("service.workers.preload")
    finally:
        os.nice = nice
    value_check = importlib.import_module("service.training.evaluation.value_check")
    value_check._MIN_STEPS = value_check._MAX_STEPS = N_VALUE_STEPS


if "multiprocessing.forkserver" in " ".join(sys.orig_argv):
    _prepare()
