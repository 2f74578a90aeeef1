"""Logs and metrics: how a running daemon tells what it does."""

import logging
import sys
from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec
import structlog
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from structlog.processors import ExceptionRenderer
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import Processor

LATENCY_BOUNDS_SECONDS = (
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.1,
    1.0,
)
"""From ten microseconds, what a redirect takes, to one second, which it must never take."""


_QUIET = {
    "httpx2": logging.WARNING,
    "httpcore2": logging.WARNING,
    "hypercorn.access": logging.WARNING,
    # It tells at INFO where it listens, and to press Ctrl-C.
    "hypercorn.error": logging.WARNING,
    # It warns at every attempt to connect; couponflow.database says it once.
    "psycopg.pool": logging.ERROR,
}


class MetricSource(Protocol):
    """Whoever keeps counts as plain numbers and names them only when they are asked for."""

    def collect(self) -> Iterable[Metric]: ...


def configure_logging(level: str, log_format: Literal["auto", "json", "console"]) -> None:
    """Send all logs, ours and our libraries', through structlog to standard error.

    `auto` is coloured lines on a terminal and JSON elsewhere. Tracebacks never show local
    variables, which may hold secrets.
    """
    as_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if as_console
        else [
            ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(least)


def _to_json(event: object, **_: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def new_registry(sources: Iterable[MetricSource] = ()) -> CollectorRegistry:
    """A registry of its own for one daemon, so that two in one test process do not collide."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    for source in sources:
        add_source(registry, source)
    return registry


def add_source(registry: CollectorRegistry, source: MetricSource) -> None:
    """Have the metrics of `source` shown, too."""
    registry.register(_SourceCollector(source))


class _SourceCollector:
    """Makes a `MetricSource` look like a Prometheus collector."""

    def __init__(self, source: MetricSource) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        return self._source.collect()

    def describe(self) -> Iterable[Metric]:
        return ()


class LatencyHistogram:
    """Counts of durations by bucket, kept as plain integers: the hot path cannot afford more."""

    __slots__ = ("_counts", "_total_seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BOUNDS_SECONDS) + 1)
        self._total_seconds = 0.0

    def observe(self, seconds: float) -> None:
        self._total_seconds += seconds
        self._counts[bisect_left(LATENCY_BOUNDS_SECONDS, seconds)] += 1

    def metric(self, name: str, documentation: str) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, documentation)
        self.add_to(family, [])
        return family

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Add the counts to a family of histograms, under these label values."""
        running = 0
        buckets: list[tuple[str, float]] = []
        bounds = [*(str(bound) for bound in LATENCY_BOUNDS_SECONDS), "+Inf"]
        for bound, count in zip(bounds, self._counts, strict=True):
            running += count
            buckets.append((bound, running))
        family.add_metric(labels, buckets, self._total_seconds)
