"""What the clicks role counts."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric

from couponflow.kernel.telemetry import LatencyHistogram
from couponflow.messages import Click


class ClicksMetrics:
    """Counts since this process started."""

    def __init__(self) -> None:
        self.stored = 0
        self.duplicates = 0
        self.buried = 0
        self.retried = 0
        self.seconds = LatencyHistogram()

    def count_stored(self, new: int, duplicates: int) -> None:
        self.stored += new
        self.duplicates += duplicates

    def collect(self) -> Iterable[Metric]:
        messages = CounterMetricFamily(
            "couponflow_messages",
            "Messages settled: done, duplicate (stored before), dead (see dead_letters), or "
            "retry (given back for a later attempt).",
            labels=["channel", "outcome"],
        )
        messages.add_metric([Click.channel, "done"], self.stored)
        messages.add_metric([Click.channel, "duplicate"], self.duplicates)
        messages.add_metric([Click.channel, "dead"], self.buried)
        messages.add_metric([Click.channel, "retry"], self.retried)
        yield messages
        yield self.seconds.metric(
            "couponflow_message_seconds", "Time a batch took from the channel to its commit."
        )
