"""End with the process that started this one."""

import ctypes
import signal
import sys

# Linux: a signal for a process whose parent has died.
_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies, whatever ended that; on Linux only.

    A thread that watches the parent is not enough where native code holds the interpreter's lock for ever. The parent
    may have died before the call: ``os.getppid`` tells.

    :param number: The signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
