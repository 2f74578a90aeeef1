import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.webhooks.sources.tokens import (
    live_tokens,
    query_tokens,
    refused_by_token,
    without_tokens,
)

TOKENS = live_tokens(["one", "", "zw\u00f6lf"])


@pytest.mark.parametrize("given_tokens", [["one"], ["no", "one"], ["zw\u00f6lf"], ["one", "one"]])
def test_any_token_lets_in(given_tokens: list[str]) -> None:
    assert refused_by_token(TOKENS, given_tokens) is None


@pytest.mark.parametrize("given_tokens", [[], [""], ["two"], ["on"], ["onee"], ["ONE"]])
def test_anything_else_does_not_and_is_not_told_of(given_tokens: list[str]) -> None:
    refused = refused_by_token(TOKENS, given_tokens)
    assert refused is not None
    assert refused.reason == "bad-signature"
    assert refused.detail == "no token of ours came with it"


@pytest.mark.parametrize(
    ("query", "left", "tokens"),
    [
        ("", "", []),
        ("a=1&secret=one&b=%7E", "a=1&b=%7E", ["one"]),
        ("token=one", "", ["one"]),
        ("token=a%2Bb&secret=c", "", ["a+b", "c"]),
        ("%73ecret=one&&a", "&a", ["one"]),
        ("SECRET=one&a=1", "a=1", ["one"]),
        ("secret&a=token=1&x_secret=2", "a=token=1&x_secret=2", []),
        ("z=1&a=%zz&a=+&\xff=1", "z=1&a=%zz&a=+&\xff=1", []),
    ],
)
def test_tokens_are_taken_out_of_a_query(query: str, left: str, tokens: list[str]) -> None:
    assert without_tokens(query) == left
    assert query_tokens(query) == tokens


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_nothing_that_lets_in_is_left_in_a_query(query: str) -> None:
    left = without_tokens(query)
    assert query_tokens(left) == []
    assert without_tokens(left) == left
