"""Tracking templates: what is refused and why, and what a link is made of."""

from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couponflow.links.tracking_template import TemplateInvalid, build_link, parse_template

ADMITAD = "https://ad.admitad.com/g/abc123/?subid={click_id}&ulp={url}"
CLICK_ID = "0197a3c2-7b1e-7c3d-9a2f-0123456789ab"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https://n.example/?s={click_id}&u={foo}", "unknown field '{foo}': the fields are {url}"),
        ("https://n.example/?s={clickid}", "unknown field '{clickid}': did you mean {click_id}?"),
        ("https://n.example/?s={click_id}&u={URL}", "unknown field '{URL}': did you mean {url}?"),
        ("https://n.example/?s={click_id}&u={}", "unknown field '{}': the fields are"),
        ("https://n.example/?s={click_id}&u={foo\n}", r"unknown field '{foo\n}'"),
        ("https://n.example/?u={url}", "lacks {click_id}"),
        ("https://n.example/?u={url}#{click_id}", "only after '#'"),
        ("https://n.example/?s={click_id", "a '{' without its partner at character 22"),
        ("https://n.example/?s=click_id}", "a '}' without its partner at character 30"),
        ("https://n.example/?s={{click_id}}", "a '{' without its partner at character 22"),
        ("ftp://n.example/?s={click_id}", "does not start with http:// or https://"),
        ("HTTPS://n.example/?s={click_id}", "in lower case"),
        ("n.example/?s={click_id}", "does not start with http:// or https://"),
        ("javascript:alert(1)//{click_id}", "does not start with http:// or https://"),
        ("https:///?s={click_id}", "has no host"),
        ("https://?s={click_id}", "has no host"),
        ("https://:443/?s={click_id}", "has no host"),
        ("https://./?s={click_id}", "has no host"),
        ("https://[::1/?s={click_id}", "is not a web address: Invalid IPv6 URL"),
        ("https://n.example:99999/?s={click_id}", "is not a web address: Port out of range"),
        ("https://me:secret@n.example/?s={click_id}", "holds credentials"),
        ("https://n.example\\evil.example/?s={click_id}", r"has '\\' in its host"),
        ("https://{click_id}.n.example/", "has {click_id} in its host"),
        ("https://{url}/?s={click_id}", "has {url} in its host"),
        ("https://n.example/?s={click_id} ", "holds ' ' at character 32"),
        ("https://n.example/?s={click_id}\r\nSet-Cookie: a=b", r"holds '\r' at character 32"),
        ("https://n.example/\x00?s={click_id}", r"holds '\x00' at character 19"),
        ("https://n.example/ü?s={click_id}", "holds 'ü', which is not ASCII"),
        ("https://n.example/?s={click_id}" + "x" * 1_970, "has 2,001 characters; at most 2,000"),
        ("", "is empty"),
    ],
)
def test_a_template_that_cannot_work_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(TemplateInvalid) as refused:
        parse_template(text)
    assert reason in str(refused.value)


def test_a_template_of_exactly_2000_characters_is_taken() -> None:
    text = "https://n.example/?s={click_id}" + "x" * 1_969
    assert parse_template(text).sections == ("https://n.example/?s=", "x" * 1_969)


def test_a_link_holds_the_click_id_and_the_destination_encoded_once() -> None:
    link = build_link(parse_template(ADMITAD), "https://shop.example/a?b=c&d=%20e", CLICK_ID)
    assert link == (
        f"https://ad.admitad.com/g/abc123/?subid={CLICK_ID}"
        "&ulp=https%3A%2F%2Fshop.example%2Fa%3Fb%3Dc%26d%3D%2520e"
    )


def test_fields_may_be_repeated() -> None:
    template = parse_template("http://n.example/{click_id}?s={click_id}&u={url}&v={url}")
    assert template.fill_url("a b") == ("http://n.example/", "?s=", "&u=a%20b&v=a%20b")


def test_a_template_without_url_leads_to_the_fixed_landing_page() -> None:
    template = parse_template("https://n.example/landing?s={click_id}")
    assert template.fill_url("https://shop.example/") == ("https://n.example/landing?s=", "")


@pytest.mark.parametrize(
    "click_id",
    ["", "a" * 25, "a" * 37, "a" * 29 + "\r\n", "a" * 26 + "\n", "ä" * 30, "a" * 29 + "&"],
)
def test_what_is_not_a_click_id_never_becomes_part_of_a_link(click_id: str) -> None:
    with pytest.raises(ValueError, match="is not a click id: 26 to 36 letters"):
        build_link(parse_template(ADMITAD), "https://shop.example/", click_id)


@given(st.text(), st.from_regex(r"[A-Za-z0-9_-]{26,36}", fullmatch=True))
def test_decoding_a_link_gives_the_destination_back(url: str, click_id: str) -> None:
    link = build_link(parse_template(ADMITAD), url, click_id)
    query = parse_qs(urlsplit(link).query, keep_blank_values=True, strict_parsing=True)
    assert query == {"subid": [click_id], "ulp": [url]}


@given(st.text(), st.text())
def test_no_line_break_ever_comes_out(text: str, url: str) -> None:
    try:
        template = parse_template(f"https://n.example/{text}?s={{click_id}}&u={{url}}")
    except TemplateInvalid:
        return
    link = build_link(template, url, CLICK_ID)
    assert link.isascii()
    assert link.isprintable()
    assert " " not in link


@given(st.text(alphabet="{}urlclick_id/:?#ht ps.", max_size=60))
def test_any_text_is_either_taken_or_refused(text: str) -> None:
    try:
        template = parse_template(text)
    except TemplateInvalid:
        return
    assert "{click_id}".join(template.sections) == text
