"""What the intake counts, as plain numbers, because it counts often."""

from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from couponflow.kernel.telemetry import LatencyHistogram

UNKNOWN_SOURCE = "unknown"
"""Stands for every path that leads to no source: callers may make up any number of them."""


class WebhookMetrics:
    """Counts since this process started."""

    def __init__(self) -> None:
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, LatencyHistogram] = {}
        self.silence: Mapping[str, tuple[float, bool]] = {}
        """Seconds since a source was last believed, and whether that is too long."""
        self.refusals_unwritten = 0
        self.batches = 0

    def count(self, source: str, outcome: str) -> None:
        self._outcomes[source, outcome] += 1

    def observe(self, source: str, seconds: float) -> None:
        """Note how long an event took from the request's arrival to its acknowledgement."""
        histogram = self._seconds.get(source)
        if histogram is None:
            histogram = self._seconds[source] = LatencyHistogram()
        histogram.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        outcomes = CounterMetricFamily(
            "couponflow_webhooks",
            "Requests of senders, by what came of them; accepted are those written down.",
            labels=["source", "outcome"],
        )
        for (source, outcome), count in sorted(self._outcomes.items()):
            outcomes.add_metric([source, outcome], count)
        yield outcomes
        seconds = HistogramMetricFamily(
            "couponflow_webhook_seconds",
            "From a request's arrival to the acknowledgement of its event.",
            labels=["source"],
        )
        for source, histogram in sorted(self._seconds.items()):
            histogram.add_to(seconds, [source])
        yield seconds
        yield from self._silence()
        yield CounterMetricFamily(
            "couponflow_webhook_refusals_unwritten",
            "Refused requests that were counted and not written into webhook_logs.",
            value=self.refusals_unwritten,
        )
        yield CounterMetricFamily(
            "couponflow_webhook_commits", "Batches of events written.", value=self.batches
        )

    def _silence(self) -> Iterable[Metric]:
        seconds = GaugeMetricFamily(
            "couponflow_webhook_silence_seconds",
            "For how long a source of which events are expected has sent none.",
            labels=["source"],
        )
        silent = GaugeMetricFamily(
            "couponflow_webhook_silent",
            "1 while that is longer than its silence_seconds.",
            labels=["source"],
        )
        for source, (since, too_long) in sorted(self.silence.items()):
            seconds.add_metric([source], since)
            silent.add_metric([source], too_long)
        return seconds, silent
