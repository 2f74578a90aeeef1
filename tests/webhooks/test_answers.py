from typing import get_args

import msgspec
import pytest

from couponflow.kernel.answers import Answer
from couponflow.webhooks.answers import Trouble, trouble_answer, verdict_answer
from couponflow.webhooks.contract import RefusalReason
from couponflow.webhooks.intake import Verdict
from couponflow.webhooks.writer import Stored

WEBHOOK_ID = "01920000-0000-7000-c000-0000000000aa"
VERDICTS: dict[Verdict, int] = {
    "unavailable": 503,
    "bad-signature": 401,
    "stale": 401,
    "forbidden-address": 403,
    "rate-limited": 429,
}
TROUBLES: dict[Trouble, tuple[int, str]] = {
    "too-large": (413, "connection"),
    "too-slow": (408, "connection"),
    "client-gone": (408, "connection"),
    "busy": (503, "retry-after"),
    "failed": (500, ""),
}


def problem_of(answer: Answer) -> str:
    assert dict(answer.headers)["content-type"] == "application/problem+json"
    told = msgspec.json.decode(answer.body)
    assert told["status"] == answer.status
    return told["type"].rpartition(":")[2]


def test_what_is_written_down_is_answered_with_its_id() -> None:
    answer = verdict_answer("accepted", WEBHOOK_ID)
    assert answer.status == 200
    assert msgspec.json.decode(answer.body) == {"status": "accepted", "webhook_id": WEBHOOK_ID}
    assert dict(answer.headers)["cache-control"] == "no-store"


def test_a_duplicate_is_no_reason_to_send_again() -> None:
    answer = verdict_answer("duplicate", WEBHOOK_ID)
    assert (answer.status, msgspec.json.decode(answer.body)) == (200, {"status": "duplicate"})


@pytest.mark.parametrize(("verdict", "status"), VERDICTS.items())
def test_a_verdict_against_it_is_a_problem(verdict: Verdict, status: int) -> None:
    answer = verdict_answer(verdict, "")
    assert answer.status == status
    assert problem_of(answer)
    assert ("retry-after" in dict(answer.headers)) == (status in (429, 503))


@pytest.mark.parametrize(("trouble", "expected"), TROUBLES.items())
def test_a_trouble_is_a_problem(trouble: Trouble, expected: tuple[int, str]) -> None:
    answer = trouble_answer(trouble)
    status, header = expected
    assert answer.status == status
    assert problem_of(answer)
    assert not header or header in dict(answer.headers)


def test_who_cannot_sign_does_not_learn_why() -> None:
    assert verdict_answer("stale", "") == verdict_answer("bad-signature", "")


def test_these_are_all_verdicts_and_troubles() -> None:
    refusals = {*get_args(RefusalReason), *get_args(Stored), "rate-limited"}
    assert {*VERDICTS, "accepted", "duplicate"} == refusals
    assert set(TROUBLES) == set(get_args(Trouble))
