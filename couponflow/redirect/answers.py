"""From a resolution to an HTTP answer, the same for every server."""

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from couponflow.kernel.answers import NO_STORE, SERVER, Answer
from couponflow.kernel.client_address import Headers
from couponflow.kernel.problems import CONTENT_TYPE, Problem, problem_type
from couponflow.redirect.resolver import Detour, Reason, Redirect, Refusal

TITLES: dict[Reason, str] = {
    "malformed": "This link is broken",
    "path-too-long": "This link is too long",
    "rate-limited": "That was a little fast",
    "offer-unknown": "We cannot find this offer",
    "offer-of-another-merchant": "We cannot find this offer",
    "offer-not-started": "This offer has not started yet",
    "offer-ended": "This offer has ended",
    "catalogue-loading": "We are just opening",
}

_NO_INDEX = ("x-robots-tag", "noindex")
# The merchant and its network may know which site the shopper came from, but not which page.
_REFERRER_POLICY = ("referrer-policy", "strict-origin-when-cross-origin")

_templates = Environment(
    loader=PackageLoader("couponflow.redirect"), autoescape=True, undefined=StrictUndefined
)


def redirect_headers(resolution: Redirect | Detour) -> list[tuple[str, str]]:
    """The headers of a 302; its body is empty."""
    return [("location", resolution.location), NO_STORE, _REFERRER_POLICY, SERVER]


def refusal_answer(refusal: Refusal, headers: Headers) -> Answer:
    """A small page where a browser would show it, problem details for everybody else."""
    wants_page = "text/html" in (headers.get("accept") or "")
    body = _page(refusal) if wants_page else _problem(refusal)
    content_type = "text/html; charset=utf-8" if wants_page else CONTENT_TYPE
    answer_headers = [("content-type", content_type), NO_STORE, _NO_INDEX, SERVER]
    if refusal.retry_after_seconds:
        answer_headers.append(("retry-after", str(refusal.retry_after_seconds)))
    return Answer(refusal.status, answer_headers, body)


@lru_cache(maxsize=256)
def _page(refusal: Refusal) -> bytes:
    template = _templates.get_template("refusal.html")
    title = TITLES[refusal.reason]
    return template.render(title=title, detail=refusal.detail, status=refusal.status).encode()


@lru_cache(maxsize=256)
def _problem(refusal: Refusal) -> bytes:
    return Problem(
        problem_type(refusal.reason), TITLES[refusal.reason], refusal.status, refusal.detail
    ).encode()
