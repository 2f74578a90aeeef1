"""What became of messages, by channel, for /metrics."""

from collections.abc import Callable, Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from couponflow.kernel.telemetry import LatencyHistogram


class ChannelCounts:
    """One channel's counts since this process started."""

    __slots__ = (
        "consumers",
        "dead",
        "discarded",
        "done",
        "duplicate",
        "fenced",
        "retry",
        "seconds",
        "snoozed",
    )

    def __init__(self) -> None:
        self.done = 0
        self.duplicate = 0
        """Were done before."""
        self.discarded = 0
        self.dead = 0
        self.retry = 0
        self.snoozed = 0
        self.fenced = 0
        """Belonged to another worker when their attempt ended."""
        self.seconds = LatencyHistogram()
        self.consumers: Callable[[], int] = _one
        """How many consumers there are now."""


def _one() -> int:
    return 1


class MessageMetrics:
    """The counts of every channel that is consumed here."""

    def __init__(self) -> None:
        self._channels: dict[str, ChannelCounts] = {}

    def channel(self, name: str) -> ChannelCounts:
        return self._channels.setdefault(name, ChannelCounts())

    def consumers(self) -> dict[str, int]:
        """How many consumers each channel has here."""
        return {name: counts.consumers() for name, counts in self._channels.items()}

    def collect(self) -> Iterable[Metric]:
        messages = CounterMetricFamily(
            "couponflow_messages",
            "Messages settled: done, duplicate (done before), discarded, dead (see dead_letters), "
            "retry (for a later attempt), snoozed, or fenced (another worker's by now).",
            labels=["channel", "outcome"],
        )
        seconds = HistogramMetricFamily(
            "couponflow_message_seconds",
            "Time a message, or a batch of clicks, was worked on.",
            labels=["channel"],
        )
        consumers = GaugeMetricFamily(
            "couponflow_consumers", "Consumers of a channel here.", labels=["channel"]
        )
        for name, counts in self._channels.items():
            for outcome in ("done", "duplicate", "discarded", "dead", "retry", "snoozed", "fenced"):
                messages.add_metric([name, outcome], getattr(counts, outcome))
            counts.seconds.add_to(seconds, [name])
            consumers.add_metric([name], counts.consumers())
        return messages, seconds, consumers
