"""What counts as a web address that a shopper may be sent to."""

import re
from urllib.parse import urlsplit

MAX_URL_CHARACTERS = 2_000

# The shape of nearly every address; what does not match is looked at part by part.
_ORDINARY = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.-]{0,251}(?:[/?#][!-~]*)?")
_BLANK_OR_CONTROL = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Characters that browsers refuse in a host, or read as something else.
_NOT_IN_A_HOST = re.compile(r'["%<>\\^`{|}]')


def url_problem(text: str) -> str | None:
    """Say what keeps `text` from being an absolute http(s) address, or None if nothing does."""
    if len(text) > MAX_URL_CHARACTERS:
        return f"has {len(text):,} characters; at most {MAX_URL_CHARACTERS:,} are allowed"
    if _ORDINARY.fullmatch(text):
        return None
    return _explain(text)


def _explain(text: str) -> str | None:
    if not text:
        return "is empty: give an address such as https://shop.example/page"
    if blank := _BLANK_OR_CONTROL.search(text):
        return (
            f"holds {blank[0]!r} at character {blank.start() + 1}: "
            "whitespace and control characters must be percent-encoded"
        )
    if not text.startswith(("http://", "https://")):
        return f"does not start with http:// or https:// (in lower case): {text[:40]!r}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is not a web address: {error}"
    if "@" in parts.netloc:
        return "holds credentials (a name before '@'): remove them"
    if not host or not host.strip(".-"):
        return "has no host: write it as https://host/path"
    if odd := _NOT_IN_A_HOST.search(parts.netloc):
        return f"has {odd[0]!r} in its host {parts.netloc[:80]!r}"
    return None
