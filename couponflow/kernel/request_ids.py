"""The id of a request: it comes with the request or is made, and goes back with the answer."""

import re

HEADER = "x-request-id"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}", re.ASCII)


def is_request_id(text: str) -> bool:
    """Whether what a caller sent can stand in logs and tables as it is."""
    return _SANE.fullmatch(text) is not None
