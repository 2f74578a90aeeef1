import pytest

from couponflow.webhooks.metrics import WebhookMetrics


def samples(metrics: WebhookMetrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics.collect()
        for sample in metric.samples
        if not sample.name.endswith("_bucket")
    }


def test_nothing_has_happened_yet() -> None:
    assert samples(WebhookMetrics()) == {
        ("couponflow_webhook_refusals_unwritten_total",): 0,
        ("couponflow_webhook_commits_total",): 0,
    }


def test_requests_are_counted_by_source_and_outcome() -> None:
    metrics = WebhookMetrics()
    for source, outcome in (
        ("shop", "accepted"),
        ("shop", "accepted"),
        ("shop", "duplicate"),
        ("mall", "accepted"),
    ):
        metrics.count(source, outcome)
    told = samples(metrics)
    assert told["couponflow_webhooks_total", "shop", "accepted"] == 2
    assert told["couponflow_webhooks_total", "shop", "duplicate"] == 1
    assert told["couponflow_webhooks_total", "mall", "accepted"] == 1


def test_acknowledgements_are_timed_by_source() -> None:
    metrics = WebhookMetrics()
    for seconds in (0.25, 0.5):
        metrics.observe("shop", seconds)
    metrics.observe("mall", 2.0)
    told = samples(metrics)
    assert told["couponflow_webhook_seconds_count", "shop"] == 2
    assert told["couponflow_webhook_seconds_sum", "shop"] == 0.75
    assert told["couponflow_webhook_seconds_count", "mall"] == 1


@pytest.mark.parametrize(("too_long", "value"), [(True, 1.0), (False, 0.0)])
def test_silence_is_told_with_what_is_expected(too_long: bool, value: float) -> None:
    metrics = WebhookMetrics()
    metrics.silence = {"shop": (12.5, too_long)}
    told = samples(metrics)
    assert told["couponflow_webhook_silence_seconds", "shop"] == 12.5
    assert told["couponflow_webhook_silent", "shop"] == value


def test_commits_and_what_was_not_written_are_counted() -> None:
    metrics = WebhookMetrics()
    metrics.batches, metrics.refusals_unwritten = 3, 4
    told = samples(metrics)
    assert told["couponflow_webhook_commits_total",] == 3
    assert told["couponflow_webhook_refusals_unwritten_total",] == 4
