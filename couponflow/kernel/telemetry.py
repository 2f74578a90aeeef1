"""Logs and metrics: how a running daemon tells what it does."""

import logging
import re
import sys
from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec
import structlog
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from structlog.processors import ExceptionRenderer, format_exc_info
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from couponflow.kernel.error_text import without_detail

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
    5.0,
    30.0,
)
"""From ten microseconds, what a redirect takes, over one second, which it must never take, to the
half minute that a handler of messages may."""

# Without limits, a hostile text would take the square of its length.
_PASSWORD = re.compile(r"""(://[^\s:/@"']{0,256}):[^\s"']{0,512}@|([?&]password=)[^&\s"']+""")
_ADDRESS = re.compile(r"(?<![\w.%+-])(?<!://)(\w)[\w.!#$%&'*+^`~-]{0,255}@(?=\w)")
_PHONE_NUMBER = re.compile(r"\+(\d[ ().-]?\d)(?:[ ().-]{0,2}\d){2,}((?:[ ().-]{0,2}\d){4})")

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
    variables, which may hold secrets; every text goes through `scrub`.
    """
    as_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [format_exc_info, scrub, structlog.dev.ConsoleRenderer()]
        if as_console
        else [
            ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            scrub,
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


def scrub(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Take personal data and passwords out of whatever is about to be written.

    E-mail addresses and international phone numbers are masked, and what PostgreSQL quotes of a
    row is cut. It sees exceptions only as text: render them before.
    """
    return {_scrubbed_text(name): _scrubbed(value) for name, value in event.items()}


def _scrubbed(value: object) -> object:
    match value:
        case str():
            return _scrubbed_text(value)
        case None | bool() | int() | float():
            return value
        case dict():
            return {_scrubbed(name): _scrubbed(each) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_scrubbed(each) for each in value]
        case bytes():
            text = value.decode(errors="replace")
        case _:
            return _scrubbed_object(value)
    clean = _scrubbed_text(text)
    return value if clean == text else clean


def _scrubbed_object(value: object) -> object:
    """The object itself, to look as ever, unless it says what it should not."""
    plain: object = msgspec.to_builtins(value, enc_hook=str)
    clean = _scrubbed(plain)
    return value if clean == plain else clean


def _scrubbed_text(text: str) -> str:
    # Nearly every text is innocent: looking costs less than replacing nothing.
    if "DETAIL:" in text or "CONTEXT:" in text:
        text = without_detail(text)
    if "://" in text:
        text = _PASSWORD.sub(_without_password, text)
    if "@" in text:
        text = _ADDRESS.sub(r"\1***@", text)
    if "+" in text:
        text = _PHONE_NUMBER.sub(_masked_number, text)
    return text


def _without_password(found: re.Match[str]) -> str:
    return f"{found[1]}:***@" if found[1] else f"{found[2]}***"


def _masked_number(found: re.Match[str]) -> str:
    first, last = (re.sub(r"\D", "", part) for part in found.groups())
    return f"+{first}***{last}"


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
