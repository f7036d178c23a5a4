"""The job queue and the replicas as discrete events: what waits for what, and for how long.

Nothing here knows a measured figure; all of them are arguments. Times are in seconds.
"""

import itertools
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simpy

Seconds = npt.NDArray[np.float64]
_Process = Generator[simpy.Event, Any, None]


class Stay(NamedTuple):
    """What became of one job.

    :param waited: From its arrival to its start; NaN if it was refused.
    :param ended_at: When it ended, or was refused.
    """

    waited: float
    ended_at: float


def simulate_queue(
    arrivals: Sequence[float], durations: Sequence[float], n_slots: int, max_waiting: int | None = None
) -> list[Stay]:
    """Let jobs wait in one line for slots.

    :param arrivals: When each job arrives, in order.
    :param durations: How long each takes once it has started.
    :param n_slots: Jobs that run at once.
    :param max_waiting: Jobs that may wait; those that come then are refused. None: as many as come.
    """
    environment = simpy.Environment()
    slots = simpy.Resource(environment, n_slots)
    stays: list[Stay] = [Stay(np.nan, np.nan)] * len(arrivals)

    def live(number: int, arrival: float, duration: float) -> _Process:
        yield environment.timeout(arrival)
        if max_waiting is not None and slots.count == n_slots and len(slots.queue) >= max_waiting:
            stays[number] = Stay(np.nan, environment.now)
            return
        with slots.request() as slot:
            yield slot
            waited = environment.now - arrival
            yield environment.timeout(duration)
        stays[number] = Stay(waited, environment.now)

    for number, (arrival, duration) in enumerate(zip(arrivals, durations, strict=True)):
        environment.process(live(number, arrival, duration))
    environment.run()
    return stays


def simulate_replicas(rate: float, answer_seconds: float, n_replicas: int, n_requests: int, seed: int) -> Seconds:
    """Send requests at random moments to replicas, each of which answers one after the other.

    The kernel chooses a replica for a connection without a look at who is busy, so each request goes to one at random.

    :param rate: Requests per second, over all replicas; their distances are exponential.
    :return: Time from each request to its answer, ``(n_requests,)``.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, n_requests))
    chosen = rng.integers(n_replicas, size=n_requests)
    answered: list[float] = []
    for replica in range(n_replicas):
        own = arrivals[chosen == replica].tolist()
        stays = simulate_queue(own, [answer_seconds] * len(own), 1)
        answered += [stay.ended_at - arrival for stay, arrival in zip(stays, own, strict=True)]
    return np.array(answered)


class Throughput(NamedTuple):
    """What a closed load came to.

    :param per_second: Answers per second.
    :param latencies: Of each answer, in seconds.
    """

    per_second: float
    latencies: Seconds


def simulate_load(
    n_connections: int,
    n_replicas: int,
    client_seconds: float,
    answer_seconds: float,
    n_cores: int,
    seconds: float,
) -> Throughput:
    """Keep every connection waiting for one answer, from one client process on the machine of the replicas.

    Client and replicas are processes of one thread each, which share the cores.

    :param client_seconds: Processor time that the client takes for an exchange.
    :param answer_seconds: Processor time that a replica takes for it.
    """
    environment = simpy.Environment()
    cores = simpy.Resource(environment, n_cores)
    client = simpy.Resource(environment, 1)
    replicas = [simpy.Resource(environment, 1) for _ in range(n_replicas)]
    latencies: list[float] = []

    def work(process: simpy.Resource, duration: float) -> _Process:
        with process.request() as turn:
            yield turn
            with cores.request() as core:
                yield core
                yield environment.timeout(duration)

    def connect(replica: simpy.Resource) -> _Process:
        while True:
            yield from work(client, client_seconds)
            sent_at = environment.now
            yield from work(replica, answer_seconds)
            latencies.append(environment.now - sent_at)

    for _, replica in zip(range(n_connections), itertools.cycle(replicas), strict=False):
        environment.process(connect(replica))
    environment.run(until=seconds)
    return Throughput(len(latencies) / seconds, np.array(latencies))
