"""Metrics of a service, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .body import Intake
from .work import WorkQueue

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds."""

CONTENT_TYPE: str = CONTENT_TYPE_LATEST


class ServiceMetrics:
    """The metrics of one service; their labels have few values, whatever clients send."""

    def __init__(self, queue: WorkQueue, intake: Intake) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "sparsedet_requests",
            "Requests by endpoint and status code",
            ["endpoint", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "sparsedet_request_seconds",
            "From the headers of a request to the end of its answer",
            ["endpoint"],
            buckets=BUCKETS,
            registry=registry,
        )
        self.work = Histogram(
            "sparsedet_work_seconds",
            "Time in the engine, by model and step",
            ["model", "step"],
            buckets=BUCKETS,
            registry=registry,
        )
        self.images = Counter(
            "sparsedet_images", "Images that were detected", ["model"], registry=registry
        )
        for name, text, value in (
            ("waiting", "Requests that wait for a thread", lambda: queue.waiting),
            ("working", "Requests in a thread", lambda: queue.working),
            ("body_bytes", "Bytes of request bodies in memory", lambda: intake.held),
        ):
            Gauge(f"sparsedet_{name}", text, registry=registry).set_function(value)

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self.registry)
