"""What senders are known by that sign nothing: a secret they were given, and bring along."""

from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote_plus

from couponflow.webhooks.contract import Refused
from couponflow.webhooks.signatures import token_matches

SECRET_PARAMETERS = frozenset({"secret", "token"})
"""Query parameters that hold a secret, whatever the case of their names."""


def live_tokens(tokens: Iterable[str]) -> tuple[bytes, ...]:
    """What `refused_by_token` compares with; an empty one would let in whoever brings none."""
    return tuple(token.encode("utf-8", "surrogatepass") for token in tokens if token)


def refused_by_token(tokens: tuple[bytes, ...], given: Iterable[str]) -> Refused | None:
    """Refuse who brought none of the tokens; every pair is compared."""
    matches = False
    for token in given:
        matches |= token_matches(tokens, token)
    return None if matches else Refused("bad-signature", "no token of ours came with it")


def query_tokens(query: str) -> list[str]:
    """What the query string brings as a secret."""
    return [value for name, value in parse_qsl(query) if name.lower() in SECRET_PARAMETERS]


def without_tokens(query: str) -> str:
    """The query string without secrets, everything else byte for byte and in order."""
    return "&".join(
        part
        for part in query.split("&")
        if unquote_plus(part.partition("=")[0]).lower() not in SECRET_PARAMETERS
    )
