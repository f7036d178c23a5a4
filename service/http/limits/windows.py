"""Count what clients send within a moving window of time."""

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from cachetools import TTLCache

# Moments that a window is told apart in, which bounds the memory and the time that one client takes.
_MAX_MOMENTS = 1000


@dataclass
class _Sent:
    """What one client has sent of late: when and how much, oldest first, and how much that is together."""

    hits: deque[tuple[float, int]] = field(default_factory=deque)
    total: int = 0

    def add(self, now: float, cost: int, moment_seconds: float) -> None:
        """Add what is sent now; what comes within a moment counts as sent at its beginning."""
        began_at, n = self.hits[-1] if self.hits else (-math.inf, 0)
        if now - began_at < moment_seconds:
            self.hits[-1] = began_at, n + cost
        else:
            self.hits.append((now, cost))
        self.total += cost


class MovingWindow:
    """Limits how much each client may send in any stretch of time. Safe to use from any thread.

    Time is the monotonic clock's: when the wall clock is set, nobody waits longer or shorter.

    :param amount: The most that one client may send within the window.
    :param seconds: Length of the window.
    """

    def __init__(self, amount: int, seconds: float) -> None:
        #: The most that one client may send within the window.
        self.amount = amount
        self._seconds = seconds
        self._lock = threading.Lock()
        # Forgets who has sent nothing for a whole window.
        self._sent: TTLCache[str, _Sent] = TTLCache(math.inf, seconds, time.monotonic)

    def hit(self, client: str, cost: int = 1) -> int | None:
        """Count what a client sends; what there is no room for does not count.

        :param cost: How much it is.
        :return: After how many seconds there is room, at least 1; None if it was counted.
        """
        with self._lock:
            now = time.monotonic()
            sent = self._sent.get(client) or _Sent()
            while sent.hits and sent.hits[0][0] <= now - self._seconds:
                sent.total -= sent.hits.popleft()[1]
            excess = sent.total + cost - self.amount
            if excess <= 0:
                sent.add(now, cost, self._seconds / _MAX_MOMENTS)
                self._sent[client] = sent
                return None
            for sent_at, n in sent.hits:
                excess -= n
                if excess <= 0:
                    return max(1, math.ceil(sent_at + self._seconds - now))
            return math.ceil(self._seconds)  # it is more than a whole window's
