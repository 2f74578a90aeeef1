"""What a sender is answered; it decides whether the sender sends again."""

from typing import Literal, assert_never

from couponflow.kernel.answers import NO_STORE, SERVER, Answer, problem_answer
from couponflow.webhooks.intake import Verdict

RETRY_AFTER_SECONDS = 5
Trouble = Literal["too-large", "too-slow", "busy", "client-gone", "failed"]

_JSON = [("content-type", "application/json"), NO_STORE, SERVER]
_DUPLICATE = Answer(200, _JSON, b'{"status":"duplicate"}')
_RETRY_AFTER = ("retry-after", str(RETRY_AFTER_SECONDS))
_CLOSE = ("connection", "close")

_UNAVAILABLE = problem_answer(
    503,
    "not-stored",
    "Service Unavailable",
    "the event could not be written down; send it again",
    _RETRY_AFTER,
)
# One answer for a wrong signature and an old one: who cannot sign learns nothing.
_UNVERIFIED = problem_answer(
    401, "not-verified", "Unauthorized", "this is not signed as the sender's events are"
)
_FORBIDDEN = problem_answer(
    403, "forbidden-address", "Forbidden", "events are not taken from this address"
)
_RATE_LIMITED = problem_answer(
    429, "rate-limited", "Too Many Requests", "send it again later", ("retry-after", "1")
)
_BUSY = problem_answer(
    503, "busy", "Service Unavailable", "too much at once; send it again", ("retry-after", "1")
)
_TOO_SLOW = problem_answer(
    408, "body-too-slow", "Request Timeout", "the body did not arrive in time", _CLOSE
)
_TOO_LARGE = problem_answer(
    413, "body-too-large", "Content Too Large", "the body is larger than is taken", _CLOSE
)
_FAILED = problem_answer(500, "internal", "Something went wrong on our side", "send it again")


def verdict_answer(verdict: Verdict, webhook_id: str) -> Answer:
    """The answer to a delivery that was judged."""
    match verdict:
        case "accepted":
            body = b'{"status":"accepted","webhook_id":"%b"}' % webhook_id.encode()
            return Answer(200, _JSON, body)
        case "duplicate":
            return _DUPLICATE
        case "unavailable":
            return _UNAVAILABLE
        case "bad-signature" | "stale":
            return _UNVERIFIED
        case "forbidden-address":
            return _FORBIDDEN
        case "rate-limited":
            return _RATE_LIMITED
        case _:
            assert_never(verdict)


def trouble_answer(trouble: Trouble) -> Answer:
    """The answer to a request that did not become a delivery."""
    match trouble:
        case "too-large":
            return _TOO_LARGE
        case "too-slow" | "client-gone":
            return _TOO_SLOW
        case "busy":
            return _BUSY
        case "failed":
            return _FAILED
        case _:
            assert_never(trouble)
