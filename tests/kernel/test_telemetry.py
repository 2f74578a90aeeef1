import json
import logging
import time
import traceback
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psycopg
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
    scrub,
)
from couponflow.messages import SmsRequested


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


REFUSED = (
    'new row for relation "t" violates check constraint "t_check"\n'
    "DETAIL:  Failing row contains (7, victim@private.example,\nOTP is 4711).\n"
    'CONTEXT:  PL/pgSQL function "f" line 3, OTP is 4711'
)
FORMATS = pytest.mark.parametrize("log_format", ["json", "console"])


def log_failures() -> None:
    """The same in all the ways that an error comes into a log."""
    ours, theirs = structlog.get_logger("couponflow.test"), logging.getLogger("theirs")
    try:
        try:
            raise psycopg.IntegrityError(REFUSED)
        except psycopg.IntegrityError as error:
            raise ExceptionGroup("several", [error, ValueError("what came after")]) from error
    except ExceptionGroup as group:
        ours.exception("failed", error=f"it: {REFUSED}")
        ours.error("failed", exc_info=group, each=[{"error": group.exceptions[0]}])
        ours.warning("failed", error=repr(group.exceptions[0]))
        theirs.exception("failed: %s", group.exceptions[0])


@FORMATS
def test_what_postgres_quotes_of_a_row_is_not_logged(
    written: Written, log_format: Literal["json", "console"]
) -> None:
    configure_logging("info", log_format)
    log_failures()
    text = written.text()
    for private in ("private.example", "4711", "DETAIL", "CONTEXT"):
        assert private not in text
    assert text.count("t_check") >= 7
    assert text.count("what came after") >= 3


@FORMATS
def test_addresses_numbers_and_passwords_are_masked(
    written: Written, log_format: Literal["json", "console"]
) -> None:
    configure_logging("info", log_format)
    secrets = ["victim@private.example", "+91 98765 43 210", "postgresql://me:hunter2@db.example/x"]
    structlog.get_logger("couponflow.test").info(
        f"to {secrets[0]}", to=secrets, by={secrets[0]: make_sms()}, raw=secrets[0].encode()
    )
    logging.getLogger("theirs").warning("%s <%s>, %s", "A", *secrets[:2])
    text = written.text()
    assert text.count("v***@private.example") == 5
    assert text.count("+91***3210") == 3
    assert "postgresql://me:***@db.example/x" in text
    for secret in ("victim", "98765", "hunter2"):
        assert secret not in text


def make_sms() -> SmsRequested:
    return SmsRequested(to="+919876543210", text="x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("o'neil.x+tag@mail.example.org, a", "o***@mail.example.org, a"),
        ("(+4915112345678)", "(+49***5678)"),
        ("+1234567 is too short", "+1234567 is too short"),
        ("2026-11-20T18:30:00+05:30", "2026-11-20T18:30:00+05:30"),
        ("redis://user@host:6379/0", "redis://user@host:6379/0"),
        ("rediss://:p/a@b@host/0", "rediss://:***@host/0"),
        ("postgresql:///x?password=hunter2&host=a", "postgresql:///x?password=***&host=a"),
        ("postgresql://me:***@db.example", "postgresql://me:***@db.example"),
        ("a DETAIL: in a line", "a DETAIL: in a line"),
    ],
)
def test_only_what_is_private_is_masked(text: str, expected: str) -> None:
    assert scrub(None, "info", {"event": text, "rows": 5}) == {"event": expected, "rows": 5}


def test_what_holds_nothing_private_keeps_its_type() -> None:
    event = {
        "event": "x",
        "path": Path("x"),
        "at": datetime(2026, 11, 20, tzinfo=UTC),
        "raw": b"x",
        "ok": None,
    }
    assert scrub(None, "info", dict(event)) == event


@pytest.mark.parametrize("text", ["a'" * 50_000, "+1" * 50_000, "://" * 5_000, "\nDETAIL:" * 9_000])
def test_a_hostile_text_is_scrubbed_in_no_time(text: str) -> None:
    started = time.process_time()
    scrub(None, "info", {"event": f"{text}@+ "})
    assert time.process_time() - started < 1


def test_a_console_line_is_followed_by_the_plain_traceback(written: Written) -> None:
    configure_logging("info", "console")
    try:
        raise ValueError("to v@x.example")
    except ValueError as error:
        expected = "".join(traceback.format_exception(error)).replace("v@x", "v***@x")
        structlog.get_logger("couponflow.test").exception("failed")
    assert written.text().endswith(f"\n{expected}")


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
    for seconds in (0.0, 0.00001, 0.0002, 0.001, 0.0011, 1.0, 1.5, 30.0, 60.0):
        histogram.observe(seconds)
    counted = samples(histogram)
    assert counted["1e-05"] == 2
    assert counted["0.00025"] == 3
    assert counted["0.001"] == 4
    assert counted["0.0025"] == 5
    assert counted["1.0"] == 6
    assert counted["5.0"] == 7
    assert counted["30.0"] == 8
    assert counted["+Inf"] == counted["count"] == 9
    assert counted["sum"] == pytest.approx(92.50231)
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
