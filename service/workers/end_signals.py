"""The signals that end a server."""

import signal

# They end the server, and must not end its workers before they have saved: a key pressed in a terminal, or two, a
# terminal that is closed, and whatever ends a service. SIGBREAK is Windows'.
_END_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK")
END_SIGNALS = tuple(signal.Signals[name] for name in _END_NAMES if hasattr(signal, name))


def list_end_signals() -> list[signal.Signals]:
    """List the signals that end this process, without those it was started to ignore.

    `nohup` has SIGHUP ignored. A shell that starts something in the background has SIGINT ignored too, but uvicorn
    takes it all the same.
    """
    return [
        number
        for number in END_SIGNALS
        if number.name not in ("SIGHUP", "SIGQUIT") or signal.getsignal(number) is not signal.SIG_IGN
    ]
