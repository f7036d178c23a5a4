"""Tell what a read-only replica answers from what it leaves to the server that trains."""

import re

from service.errors import printable
from service.settings import Settings

# Jobs, sweeps and environments, which a replica lacks, and the pages that start and show them.
_ROOTS = frozenset({"train", "training", "sweeps", "environments", "reward-functions", "dashboard"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
# What is made in a worker.
_WORK = re.compile(r"/models/[^/]*/(video|export)/?")


class ReadOnlyRule:
    """Tells requests that a replica leaves to the server that trains.

    403: path and method are right, but this server is the wrong one; 5xx would say that it had failed.

    :param settings: Where to send them.
    """

    def __init__(self, settings: Settings) -> None:
        self._trainer = "" if settings.trainer_url is None else f", {settings.trainer_url}"

    def find_refusal(self, method: str, path: str) -> str | None:
        """Return why a request is refused, for the client; None if a replica answers it.

        :param method: The method, in capitals; of a socket, any.
        """
        root = path.split("/", 2)[1] if path.startswith("/") else ""
        if root in _ROOTS or (root == "models" and (method not in _READING or _WORK.fullmatch(path))):
            return self.describe(f"'{printable(method)} {printable(path)}'")
        return None

    def describe(self, what: str = "what trains, writes or runs an environment") -> str:
        """Say where something belongs that a replica does not do."""
        return (
            "this server is a read-only replica (GRPO_ROLE=serve): it answers /inference and /inference/batch, and "
            f"reads models; send {what} to the server that trains{self._trainer}."
        )
