"""Pauses before what has ended is started again."""

# Doubled each time: what cannot start would import for seconds, again and again.
_FIRST_SECONDS, _LONGEST_SECONDS = 1.0, 60.0


class RestartPause:
    """The pauses before the restarts of one thing: each is twice as long as the one before, up to a minute.

    :param is_first_at_once: Whether the first restart comes without a pause.
    """

    def __init__(self, is_first_at_once: bool = False) -> None:
        self._first_seconds = 0.0 if is_first_at_once else _FIRST_SECONDS
        self._next_seconds = self._first_seconds

    def choose(self, ran_seconds: float) -> float:
        """Return the next pause, in seconds.

        :param ran_seconds: How long it has run; after more than a minute the pauses begin anew.
        """
        if ran_seconds > _LONGEST_SECONDS:
            self._next_seconds = self._first_seconds
        seconds = self._next_seconds
        self._next_seconds = min(_LONGEST_SECONDS, max(_FIRST_SECONDS, 2 * seconds))
        return seconds
