"""What the redirector counts, as plain numbers, because it counts very often."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from couponflow.kernel.journal import Journal
from couponflow.kernel.telemetry import LatencyHistogram
from couponflow.messages import Verdict


class RedirectMetrics:
    """Counts since this process started."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.outcomes: dict[str, int] = {"redirected": 0}
        self.verdicts: dict[Verdict, int] = {"human": 0, "bot": 0, "prefetch": 0, "duplicate": 0}
        self.unrecorded = 0
        self.undecodable = 0
        self.seconds = LatencyHistogram()

    def count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def collect(self) -> Iterable[Metric]:
        redirects = CounterMetricFamily(
            "couponflow_redirects",
            "Tracked links answered; error is a fault of ours, and any other outcome but"
            " redirected and ended is a refusal.",
            labels=["outcome"],
        )
        for outcome, count in self.outcomes.items():
            redirects.add_metric([outcome], count)
        yield redirects
        verdicts = CounterMetricFamily(
            "couponflow_clicks",
            "Clicks redirected, by what they are thought to be.",
            labels=["verdict"],
        )
        for verdict, count in self.verdicts.items():
            verdicts.add_metric([verdict], count)
        yield verdicts
        yield self.seconds.metric(
            "couponflow_redirect_seconds", "From a parsed request to its answer."
        )
        yield CounterMetricFamily(
            "couponflow_clicks_unrecorded",
            "Clicks redirected but not recorded, because the journal was full: free disk at once.",
            value=self.unrecorded,
        )
        journal = self._journal.statistics()
        yield GaugeMetricFamily(
            "couponflow_journal_bytes", "Size of the click journal on disk.", value=journal.bytes
        )
        yield GaugeMetricFamily(
            "couponflow_journal_backlog_bytes",
            "Journalled clicks nobody has taken over yet; grows while PostgreSQL is away.",
            value=journal.backlog_bytes,
        )
        yield CounterMetricFamily(
            "couponflow_journal_set_aside",
            "Damaged journal records kept in var/journal/set-aside for inspection.",
            value=journal.set_aside + self.undecodable,
        )
