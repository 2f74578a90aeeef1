from couponflow.kernel.message_metrics import MessageMetrics


def samples(metrics: MessageMetrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics.collect()
        for sample in metric.samples
    }


def test_what_became_of_messages_is_told_by_channel_and_outcome() -> None:
    metrics = MessageMetrics()
    counts = metrics.channel("emails")
    assert metrics.channel("emails") is counts
    outcomes = ("done", "duplicate", "discarded", "dead", "retry", "snoozed", "fenced")
    for number, outcome in enumerate(outcomes, 1):
        setattr(counts, outcome, number)
    metrics.channel("sms")
    told = samples(metrics)
    for number, outcome in enumerate(outcomes, 1):
        assert told["couponflow_messages_total", "emails", outcome] == number
        assert told["couponflow_messages_total", "sms", outcome] == 0


def test_attempts_are_timed() -> None:
    metrics = MessageMetrics()
    metrics.channel("emails").seconds.observe(0.25)
    metrics.channel("emails").seconds.observe(0.5)
    told = samples(metrics)
    assert told["couponflow_message_seconds_sum", "emails"] == 0.75
    assert told["couponflow_message_seconds_count", "emails"] == 2


def test_consumers_are_counted_when_they_are_asked_for() -> None:
    metrics = MessageMetrics()
    size = 2
    metrics.channel("emails").consumers = lambda: size
    metrics.channel("clicks")
    assert metrics.consumers() == {"emails": 2, "clicks": 1}
    size = 5
    assert samples(metrics)["couponflow_consumers", "emails"] == 5
