"""Errors over HTTP, in one shape: RFC 9457 problem details."""

import msgspec

CONTENT_TYPE = "application/problem+json"


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was refused; `type` is stable and may be matched by programs."""

    type: str
    title: str
    status: int
    detail: str = ""
    path: str = ""
    """Where in the body the fault is, as in `$.to`."""
    request_id: str = ""
    """Found again on every log line about the request."""

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def problem_type(name: str) -> str:
    """The stable identifier of a kind of problem."""
    return f"urn:couponflow:problem:{name}"
