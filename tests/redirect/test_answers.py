from typing import get_args

import msgspec
import pytest

from couponflow.kernel.answers import json_answer, problem_answer
from couponflow.kernel.problems import Problem
from couponflow.redirect.answers import (
    TITLES,
    redirect_headers,
    refusal_answer,
)
from couponflow.redirect.resolver import Detour, Reason, Redirect, Refusal
from tests.samples import FakeHeaders, make_click

LOCATION = "https://go.example/c?sub=1"
ENDED = Refusal(410, "offer-ended", "This offer has <ended>.")
FROM_A_PAGE = FakeHeaders(("accept", "text/html,application/xhtml+xml,*/*;q=0.8"))


@pytest.mark.parametrize("resolution", [Redirect(LOCATION, make_click()), Detour(LOCATION)])
def test_a_redirect_is_not_cached_and_tells_only_where_it_came_from(
    resolution: Redirect | Detour,
) -> None:
    assert redirect_headers(resolution) == [
        ("location", LOCATION),
        ("cache-control", "no-store"),
        ("referrer-policy", "strict-origin-when-cross-origin"),
        ("server", "couponflow"),
    ]


def test_a_browser_is_shown_a_page_with_the_detail_escaped() -> None:
    answer = refusal_answer(ENDED, FROM_A_PAGE)
    page = answer.body.decode()
    assert answer.status == 410
    assert answer.headers == [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-robots-tag", "noindex"),
        ("server", "couponflow"),
    ]
    assert "<h1>This offer has ended</h1>" in page
    assert "<p>This offer has &lt;ended&gt;.</p>" in page
    assert "(410)" in page


@pytest.mark.parametrize("accept", ["*/*", "application/json", None])
def test_a_program_is_given_problem_details(accept: str | None) -> None:
    headers = FakeHeaders(("accept", accept)) if accept else FakeHeaders()
    answer = refusal_answer(ENDED, headers)
    assert ("content-type", "application/problem+json") in answer.headers
    assert msgspec.json.decode(answer.body, type=Problem) == Problem(
        type="urn:couponflow:problem:offer-ended",
        title="This offer has ended",
        status=410,
        detail="This offer has <ended>.",
    )


def test_a_refusal_that_passes_says_when_to_come_back() -> None:
    answer = refusal_answer(Refusal(429, "rate-limited", "Too many.", 7), FROM_A_PAGE)
    assert answer.headers[-1] == ("retry-after", "7")
    assert "retry-after" not in dict(refusal_answer(ENDED, FROM_A_PAGE).headers)


def test_every_reason_has_a_title_and_a_page() -> None:
    assert set(TITLES) == set(get_args(Reason))
    for reason in TITLES:
        page = refusal_answer(Refusal(400, reason, "Because."), FROM_A_PAGE).body.decode()
        assert f"<title>{TITLES[reason]}</title>" in page


def test_a_problem_elsewhere_may_have_headers_of_its_own() -> None:
    answer = problem_answer(405, "method-not-allowed", "Use GET", "", ("allow", "GET"))
    assert (answer.status, dict(answer.headers)["allow"]) == (405, "GET")
    assert msgspec.json.decode(answer.body) == {
        "type": "urn:couponflow:problem:method-not-allowed",
        "title": "Use GET",
        "status": 405,
    }


def test_json_is_not_cached() -> None:
    answer = json_answer(200, {"a": 1})
    assert (answer.status, answer.body) == (200, b'{"a":1}')
    assert answer.headers == [
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("server", "couponflow"),
    ]
