import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from couponflow.kernel.telemetry import (
    LATENCY_BOUNDS_SECONDS,
    LatencyHistogram,
    configure_logging,
    new_registry,
)


class Written:
    """What has been logged."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def text(self) -> str:
        return self._capture.readouterr().err

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """Standard error; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield Written(capsys)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_line_is_json_with_time_level_logger_and_values(written: Written) -> None:
    configure_logging("info", "json")
    structlog.get_logger("couponflow.test").info("flushed", rows=5, path=Written)
    (line,) = written.lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "flushed",
        "level": "info",
        "logger": "couponflow.test",
        "rows": 5,
        "path": str(Written),
    }


def test_logs_of_libraries_have_the_same_shape(written: Written) -> None:
    configure_logging("info", "json")
    logging.getLogger("some.library").warning("%s is %d", "it", 5)
    (line,) = written.lines()
    assert line.pop("timestamp")
    assert line == {"event": "it is 5", "level": "warning", "logger": "some.library"}


def test_values_bound_to_the_context_are_on_every_line(written: Written) -> None:
    configure_logging("info", "json")
    with structlog.contextvars.bound_contextvars(correlation_id="c-1"):
        structlog.get_logger("couponflow.test").info("ours")
        logging.getLogger("theirs").warning("theirs")
    assert [line["correlation_id"] for line in written.lines()] == ["c-1", "c-1"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_no_local_variables(
    written: Written, log_format: Literal["json", "console"]
) -> None:
    configure_logging("info", log_format)

    def fail() -> None:
        password = "hunter2"
        raise ValueError(f"{len(password)} characters")

    try:
        fail()
    except ValueError:
        structlog.get_logger("couponflow.test").exception("failed")
        logging.getLogger("theirs").exception("failed")
    text = written.text()
    assert text.count("7 characters") >= 2
    assert "test_telemetry.py" in text
    assert "hunter2" not in text.replace('password = "hunter2"', "")


def test_less_than_the_level_is_not_logged(written: Written) -> None:
    configure_logging("warning", "json")
    log = structlog.get_logger("couponflow.test")
    log.info("too little")
    log.warning("enough")
    logging.getLogger("theirs").info("too little")
    assert [line["event"] for line in written.lines()] == ["enough"]


@pytest.mark.parametrize(
    ("name", "least"), [("psycopg.pool", logging.ERROR), ("hypercorn.error", logging.WARNING)]
)
def test_libraries_are_quiet_about_what_we_say_ourselves(
    written: Written, name: str, least: int
) -> None:
    configure_logging("debug", "json")
    library = logging.getLogger(name)
    library.log(least - 1, "too little")
    library.log(least, "enough")
    assert [line["event"] for line in written.lines()] == ["enough"]


def test_configuring_again_does_not_double_the_lines(written: Written) -> None:
    for _ in range(3):
        configure_logging("info", "json")
    structlog.get_logger("couponflow.test").info("once")
    assert len(written.lines()) == 1


def test_without_a_terminal_the_format_is_json(written: Written) -> None:
    configure_logging("info", "auto")
    structlog.get_logger("couponflow.test").info("hello")
    assert [line["event"] for line in written.lines()] == ["hello"]


def samples(histogram: LatencyHistogram) -> dict[str, float]:
    metric = histogram.metric("x_seconds", "Something.")
    return {
        sample.labels.get("le", sample.name.removeprefix("x_seconds_")): sample.value
        for sample in metric.samples
    }


def test_a_histogram_counts_up_to_each_bound_inclusively() -> None:
    histogram = LatencyHistogram()
    for seconds in (0.0, 0.00001, 0.0002, 0.001, 0.0011, 1.0, 1.5, 60.0):
        histogram.observe(seconds)
    counted = samples(histogram)
    assert counted["1e-05"] == 2
    assert counted["0.00025"] == 3
    assert counted["0.001"] == 4
    assert counted["0.0025"] == 5
    assert counted["1.0"] == 6
    assert counted["+Inf"] == counted["count"] == 8
    assert counted["sum"] == pytest.approx(62.50231)
    assert len(counted) == len(LATENCY_BOUNDS_SECONDS) + 3


def test_a_histogram_that_observed_nothing_is_all_zeros() -> None:
    assert set(samples(LatencyHistogram()).values()) == {0}


class Clicks:
    """A source of metrics."""

    def __init__(self) -> None:
        self.clicks = 0
        self.histogram = LatencyHistogram()

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("couponflow_test_clicks", "Clicks.", value=self.clicks)
        yield self.histogram.metric("couponflow_test_seconds", "Times.")


def test_a_registry_asks_its_sources_only_when_it_is_asked() -> None:
    source = Clicks()
    registry, other = new_registry([source]), new_registry([source])
    source.clicks = 7
    source.histogram.observe(0.5)
    assert registry.get_sample_value("couponflow_test_clicks_total") == 7
    assert other.get_sample_value("couponflow_test_seconds_sum") == 0.5
    families = text_string_to_metric_families(generate_latest(registry).decode())
    own = [family for family in families if family.name.startswith("couponflow_")]
    assert {family.name: family.type for family in own} == {
        "couponflow_test_clicks": "counter",
        "couponflow_test_seconds": "histogram",
    }
