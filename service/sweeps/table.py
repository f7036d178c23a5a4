"""The table of all sweeps: how one is found, and whether there is a place for another."""

import threading

from service.errors import ConflictError, DrainingError, NotFoundError, QueueFullError, printable
from service.jobs.table import LATEST
from service.schemas.sweeps import SweepSummary
from service.sweeps.sweep import Sweep

# Sweeps that are remembered; the oldest that have ended go first.
_MAX_KEPT = 200
# Sweeps that run at a time, in all and of one client: they take turns, and with more none would get anywhere.
_MAX_ACTIVE, _MAX_ACTIVE_OF_CLIENT = 16, 4


class SweepTable:
    """All sweeps by id.

    ``changed`` guards them. Except for ``summarize`` and ``read``, methods are for those who hold it.
    """

    def __init__(self) -> None:
        #: Guards everything below, and all sweeps; never held while a job is planned, or the disk is read or written.
        #: Notified when there is something new for the conductor.
        self.changed = threading.Condition()
        self.sweeps: dict[str, Sweep] = {}
        #: Active sweeps in the order of their turns.
        self.turns: list[str] = []
        #: Ids of sweeps that are being deleted. Written once more, they would come back with the next server.
        self.leaving: set[str] = set()
        #: Set when the server begins to shut down.
        self.is_closing = False

    def summarize(self, sweep: Sweep) -> SweepSummary:
        """Return a sweep's line in the list of sweeps."""
        with self.changed:
            return sweep.summarize()

    def read(self, sweep_id: str) -> str | None:
        """Return a sweep's record in JSON; None if it is forgotten."""
        with self.changed:
            sweep = None if sweep_id in self.leaving else self.sweeps.get(sweep_id)
            return None if sweep is None else sweep.record.model_dump_json()

    def get(self, sweep_id: str) -> Sweep:
        """Return a sweep.

        :param sweep_id: Its id, or ``LATEST``.
        :raises NotFoundError: If there is no such sweep.
        """
        if sweep_id == LATEST and self.sweeps:
            return next(reversed(self.sweeps.values()))
        if sweep_id not in self.sweeps:
            what = "no sweep yet" if sweep_id == LATEST else f"no sweep '{printable(sweep_id)}'"
            raise NotFoundError(f"there is {what}; GET /sweeps lists them, and POST /sweeps starts one.")
        return self.sweeps[sweep_id]

    def check_can_start(self, name: str | None, client: str | None) -> None:
        """Refuse another sweep if there is no place for it.

        :param name: Its name; None if it will get one that is free.
        :param client: Whose it is; None for the operator's own.
        :raises DrainingError: If the server is shutting down.
        :raises QueueFullError: If too many sweeps are active.
        :raises ConflictError: If its name is taken.
        """
        if self.is_closing:
            raise DrainingError("the server is shutting down; submit the sweep again when it is back.")
        self.check_n_active(client)
        for sweep in self.sweeps.values():
            if name is not None and sweep.record.name.casefold() == name.casefold():
                raise ConflictError(
                    f"there is a sweep '{sweep.record.name}' already; pick another name, or delete it with DELETE "
                    f"/sweeps/{sweep.sweep_id}."
                )

    def check_n_active(self, client: str | None) -> None:
        """Refuse another active sweep of a client, as ``check_can_start`` does.

        :raises QueueFullError: If too many sweeps are active.
        """
        active = [sweep for sweep in self.sweeps.values() if sweep.status.is_active]
        n_own = sum(sweep.record.client == client for sweep in active)
        if client is not None and n_own >= _MAX_ACTIVE_OF_CLIENT:
            raise QueueFullError(
                f"{n_own} of your sweeps are running, the most that one client may have; stop one, or wait."
            )
        if len(active) >= _MAX_ACTIVE:
            raise QueueFullError(f"{_MAX_ACTIVE} sweeps are running, the most at a time; stop one, or try again later.")

    def drop_old(self) -> list[str]:
        """Forget the sweeps that are too many; return their ids."""
        ended = [sweep_id for sweep_id, sweep in self.sweeps.items() if not sweep.status.is_active]
        old = ended[: max(0, len(self.sweeps) + 1 - _MAX_KEPT)]
        for sweep_id in old:
            del self.sweeps[sweep_id]
        return old
