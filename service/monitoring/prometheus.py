"""Metrics for Prometheus.

Labels are routes, methods and states, so their number is bounded; never a name or an id that a client can choose.
"""

import collections
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from grpo_core import __version__
from service.jobs.registry import JobRegistry
from service.models.store import ModelStore
from service.monitoring.readiness import Readiness
from service.schemas.jobs import JobStatus

MEDIA_TYPE = CONTENT_TYPE_LATEST

# RFC 9110's methods and PATCH; clients can make up others.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_OTHER = "other"
# An ordinary answer takes less than a millisecond, a stopped job's up to two seconds.
_REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# A small policy takes 20 to 50 microseconds, a batch up to a second.
_INFERENCE_BUCKETS = (0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0)
_BATCH_BUCKETS = (1, 8, 64, 256, 1024, 4096, 16_384, 65_536)
# So few that counting them takes less time than one more request.
_MAX_NOTED = 32

Answer = TypeVar("Answer")


class Metrics:
    """Counts and times requests, and reads the state of jobs and models at each scrape.

    :param store: The models.
    :param jobs: The training jobs.
    :param readiness: Tells whether the server can take work.
    :param role: What the server does, as in the settings.
    """

    def __init__(self, store: ModelStore, jobs: JobRegistry, readiness: Readiness, role: str = "all") -> None:
        # Its own registry, so that two services in one process do not share counters.
        self._registry = registry = CollectorRegistry()
        labels = ("method", "route")
        self._requests = Counter(
            "grpo_http_requests_total", "Requests answered.", (*labels, "status"), registry=registry
        )
        self._durations = Histogram(
            "grpo_http_request_duration_seconds",
            "Time until the answer began.",
            labels,
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )
        self._inference_duration = Histogram(
            "grpo_inference_duration_seconds",
            "Time to answer one observation or one batch, after the request was read.",
            registry=registry,
            buckets=_INFERENCE_BUCKETS,
        )
        self._batch_size = Histogram(
            "grpo_inference_batch_size",
            "Observations per answered batch.",
            registry=registry,
            buckets=_BATCH_BUCKETS,
        )
        build = Gauge("grpo_build_info", "Versions; always 1.", ("version", "python"), registry=registry)
        build.labels(__version__, platform.python_version()).set(1)
        replica = Gauge("grpo_replica_info", "Which process answers; always 1.", ("role", "replica"), registry=registry)
        replica.labels(role, f"{platform.node()}:{os.getpid()}").set(1)
        ProcessCollector(registry=registry)
        registry.register(_StateCollector(store, jobs, readiness))
        self._noted: collections.deque[tuple[float, float]] = collections.deque()
        # Cached by label, since looking one up in prometheus_client takes longer than counting.
        self._by_labels: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def count_request(self, method: str, route: str, status: int, seconds: float | None = None) -> None:
        """Count an answered request.

        :param route: Its path template.
        :param seconds: Time until the answer began; None if it was not measured.
        """
        key = method if method in _METHODS else _OTHER, route, status
        if key not in self._by_labels:
            self._by_labels[key] = self._requests.labels(*key), self._durations.labels(*key[:2])
        counter, durations = self._by_labels[key]
        counter.inc()
        if seconds is not None:
            durations.observe(seconds)

    def note_answer(self, inference_seconds: float, request_seconds: float) -> None:
        """Count an observation that was answered in front of the route. Cheaper than to count each for itself.

        :param inference_seconds: What ``measure_inference`` would record.
        :param request_seconds: What ``count_request`` would be told.
        """
        self._noted.append((inference_seconds, request_seconds))
        if len(self._noted) >= _MAX_NOTED:
            self._count_noted()

    def _count_noted(self) -> None:
        while True:
            try:
                inference_seconds, request_seconds = self._noted.popleft()
            except IndexError:  # another thread may have taken the last one
                return
            self._inference_duration.observe(inference_seconds)
            self.count_request("POST", "/inference", 200, request_seconds)

    def measure_inference(self, infer: Callable[..., Answer], *arguments: object) -> Answer:
        """Call a function that answers one observation, and record how long it took.

        :raises Exception: Whatever the function raises; then nothing is recorded.
        """
        begun = time.perf_counter()
        answer = infer(*arguments)
        self._inference_duration.observe(time.perf_counter() - begun)
        return answer

    def measure_batch(self, answer_batch: Callable[[Callable[[int], None]], Answer]) -> Answer:
        """Call a function that answers a batch, and record how long it took and how many observations there were.

        :param answer_batch: Called with a function to which it reports their number.
        :raises Exception: Whatever the function raises; then nothing is recorded.
        """
        sizes: list[int] = []
        begun = time.perf_counter()
        answer = answer_batch(sizes.append)
        self._inference_duration.observe(time.perf_counter() - begun)
        self._batch_size.observe(sum(sizes))
        return answer

    def render(self) -> bytes:
        """Render all metrics in Prometheus' text format; OpenMetrics would not let two families share a name."""
        self._count_noted()
        return generate_latest(self._registry)


class _StateCollector(Collector):
    """Reads the state of jobs, models and disk at each scrape."""

    def __init__(self, store: ModelStore, jobs: JobRegistry, readiness: Readiness) -> None:
        self._store = store
        self._jobs = jobs
        self._readiness = readiness

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        n_jobs = collections.Counter(job.status for job in self._jobs.list_jobs())
        by_status = GaugeMetricFamily("grpo_jobs", "Jobs the server remembers, by status.", labels=["status"])
        for status in JobStatus:
            by_status.add_metric([status], n_jobs[status])
        yield by_status
        by_outcome = CounterMetricFamily("grpo_jobs", "Jobs that have ended, by outcome.", labels=["outcome"])
        for status, n_ended in self._jobs.totals.n_ended.items():
            by_outcome.add_metric([status], n_ended)
        yield by_outcome
        yield GaugeMetricFamily("grpo_job_queue_depth", "Jobs waiting for a slot.", n_jobs[JobStatus.QUEUED])
        yield GaugeMetricFamily("grpo_job_slots", "Maximum number of jobs that run at once.", self._jobs.max_running)
        yield CounterMetricFamily(
            "grpo_train_timesteps", "Simulator steps taken by all jobs.", self._jobs.totals.n_timesteps
        )
        yield GaugeMetricFamily("grpo_models_loaded", "Models in memory.", self._store.n_loaded)
        yield CounterMetricFamily(
            "grpo_model_evictions", "Models dropped from memory to make room.", self._store.n_evicted
        )
        is_ready = not self._readiness.list_obstacles()
        yield GaugeMetricFamily("grpo_ready", "1 if the server can take work, else 0.", is_ready)
        n_free_bytes = self._store.folder.n_free_bytes
        if n_free_bytes is not None:
            yield GaugeMetricFamily("grpo_storage_free_bytes", "Free space on the models' disk.", n_free_bytes)
