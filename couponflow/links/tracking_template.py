"""Tracking templates: how an affiliate network's link is made from a destination and a click.

A template is the network's link with two fields: `{url}`, the destination, percent-encoded once
(the network decodes it once and gets the address as it is stored), and `{click_id}`, the sub-id
that comes back with the sale.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import quote

from couponflow.links.web_url import url_problem

URL_FIELD = "{url}"
CLICK_ID_FIELD = "{click_id}"

_FIELDS = {"url": URL_FIELD, "click_id": CLICK_ID_FIELD}
_FIELD_OR_BRACE = re.compile(r"\{([^{}]*)\}|[{}]")
_CLICK_ID = re.compile(r"[A-Za-z0-9_-]{26,36}")


class TemplateInvalid(ValueError):
    """A tracking template cannot be used; the message says why and what to write instead."""


@dataclass(frozen=True, slots=True)
class TrackingTemplate:
    """A template that has passed every check; made by `parse_template`."""

    sections: tuple[str, ...]
    """The text around each `{click_id}`: one more than there are such fields."""

    def fill_url(self, url: str) -> tuple[str, ...]:
        """The parts around the click id with the destination in place.

        `click_id.join(parts)` is then the whole link, which is all that is left to do per click.
        """
        encoded = quote(url, safe="")
        return tuple(section.replace(URL_FIELD, encoded) for section in self.sections)


def parse_template(text: str) -> TrackingTemplate:
    """Check a template and take it apart; raises `TemplateInvalid`.

    A template without `{url}` always leads to the network's own landing page, which is allowed;
    one without `{click_id}` could never earn anything, which is not.
    """
    _check_fields(text)
    if (problem := url_problem(text)) is not None:
        raise TemplateInvalid(problem)
    if not text.isascii():
        odd = next(character for character in text if not character.isascii())
        raise TemplateInvalid(f"holds {odd!r}, which is not ASCII: percent-encode it")
    if CLICK_ID_FIELD not in text:
        raise TemplateInvalid(
            "lacks {click_id}: without the network's sub-id no sale can be traced to its click"
        )
    if CLICK_ID_FIELD not in text.partition("#")[0]:
        raise TemplateInvalid(
            "has {click_id} only after '#', a part that browsers do not send: put it in the query"
        )
    return TrackingTemplate(tuple(text.split(CLICK_ID_FIELD)))


def build_link(template: TrackingTemplate, url: str, click_id: str) -> str:
    """The link a shopper is sent to; raises `ValueError` for a click id that is not one."""
    if not _CLICK_ID.fullmatch(click_id):
        raise ValueError(
            f"{click_id[:40]!r} is not a click id: 26 to 36 letters, digits, '_' or '-'"
        )
    return click_id.join(template.fill_url(url))


def _check_fields(text: str) -> None:
    authority = re.match(r"https?://[^/?#]*", text)
    for found in _FIELD_OR_BRACE.finditer(text):
        name: str | None = found[1]
        if name is None:
            raise TemplateInvalid(
                f"has a {found[0]!r} without its partner at character {found.start() + 1}: "
                "write %7B or %7D for a brace that is not part of a field"
            )
        if name not in _FIELDS:
            raise TemplateInvalid(_unknown_field(name))
        if authority and found.start() < authority.end():
            raise TemplateInvalid(f"has {found[0]} in its host: the host must be fixed text")


def _unknown_field(name: str) -> str:
    close = get_close_matches(name.strip().lower(), _FIELDS, n=1, cutoff=0.5)
    hint = f"did you mean {_FIELDS[close[0]]}?" if close else "the fields are {url} and {click_id}"
    return f"has the unknown field {'{' + name[:40] + '}'!r}: {hint}"
