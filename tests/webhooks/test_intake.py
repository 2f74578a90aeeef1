import hashlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from couponflow.config import Settings
from couponflow.kernel.database import Database
from couponflow.messages import WebhookAccepted
from couponflow.webhooks.contract import Delivery, Identity
from couponflow.webhooks.sources.registry import known_sources
from tests.kernel.outboxes import select
from tests.samples import CLICKED_AT
from tests.webhooks.deliveries import (
    KEY,
    REFUSALS,
    SIGNATURE,
    IntakeParts,
    Shop,
    counts,
    delivery,
    intake_parts,
    writing,
)

EVENTS = "select event_id, event_type, query from webhook_logs order by query"
LONE_SURROGATE = "\ud800"


def sha256(*parts: bytes) -> str:
    return f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()}"


@pytest.fixture
async def parts(database: Database) -> AsyncIterator[IntakeParts]:
    opened = intake_parts(database)
    async with writing(opened.writer):
        yield opened


async def test_a_believed_delivery_is_written_down_with_its_message(parts: IntakeParts) -> None:
    verdict, webhook_id = await parts.take(delivery(b"ann", event_id="e1", query="a=1"))
    assert verdict == "accepted"
    logged = await select(
        parts.database,
        "select id::text, extract(epoch from received_at)::float8, source, event_type, event_id,"
        " method, query, body, address from webhook_logs",
    )
    assert logged == [
        (webhook_id, CLICKED_AT, "shop", "mail", "e1", "POST", "a=1", b"ann", "192.0.2.7")
    ]
    ((message_id, message),) = await select(
        parts.database, "select id::text, message::text from outbox"
    )
    assert message_id == webhook_id
    assert msgspec.json.decode(str(message), type=WebhookAccepted) == WebhookAccepted(
        webhook_id=webhook_id, source="shop", received_at=CLICKED_AT
    )


async def test_a_duplicate_is_known_by_its_id_or_else_by_what_it_says(parts: IntakeParts) -> None:
    first = delivery(b"ann", event_id="e1")
    again = delivery(b"another body", event_id="e1", received_at=CLICKED_AT + 86_400)
    assert [(await parts.take(each))[0] for each in (first, again)] == ["accepted", "duplicate"]
    nameless = [delivery(b"ann"), delivery(b"ann"), delivery(b"ben"), delivery(b"ann", query="a")]
    told = [(await parts.take(each))[0] for each in nameless]
    assert told == ["accepted", "duplicate", "accepted", "accepted"]
    assert await counts(parts.database) == (4, 4, 4)


IDS = [
    ("evt_1", "evt_1"),
    ("événement 1", "événement 1"),
    ("x" * 300, "x" * 300),
    ("x" * 301, sha256(b"x" * 301)),
    ("line\nbreak", sha256(b"line\nbreak")),
    ("nul\0", sha256(b"nul\0")),
    (LONE_SURROGATE, sha256(b"\xed\xa0\x80")),
    ("", sha256(b"ann")),
]
TYPES = [
    ("mail", "mail"),
    ("nul\0here", "nul\ufffdhere"),
    (f"a{LONE_SURROGATE}b", "a?b"),
    ("t" * 1_000, "t" * 200),
    ("", ""),
]


async def test_an_event_has_its_senders_id_or_a_hash(parts: IntakeParts) -> None:
    for event_id, _ in IDS:
        parts.source.identity = Identity("", event_id)
        assert (await parts.take(delivery()))[0] == "accepted"
    ids = [row[0] for row in await select(parts.database, EVENTS)]
    assert sorted(map(str, ids)) == sorted(stored for _, stored in IDS)


async def test_a_type_or_a_query_that_cannot_be_stored_is_mended(parts: IntakeParts) -> None:
    for number, (event_type, _) in enumerate(TYPES):
        parts.source.identity = Identity(event_type, f"{number}")
        assert (await parts.take(delivery()))[0] == "accepted"
    rows = await select(parts.database, "select event_type from webhook_logs order by event_id")
    assert [event_type for (event_type,) in rows] == [stored for _, stored in TYPES]
    parts.source.identity = None
    assert (await parts.take(delivery(query=f"nul\0{LONE_SURROGATE}")))[0] == "accepted"
    assert ("nul\ufffd?",) in await select(parts.database, "select query from webhook_logs")


async def test_the_hash_covers_what_the_query_says_but_no_secret_in_it(database: Database) -> None:
    parts = intake_parts(database, source=Shop(methods=("GET",)))
    queries = ["a=1&secret=s1", "secret=s2&a=1", "a=2"]
    async with writing(parts.writer):
        deliveries = [delivery(b"", method="GET", query=query) for query in queries]
        told = [(await parts.take(each))[0] for each in deliveries]
    assert told == ["accepted", "duplicate", "accepted"]
    empty = hashlib.sha256(b"").digest()
    assert [(row[0], row[2]) for row in await select(database, EVENTS)] == [
        (sha256(b"a=1\0", empty), "a=1"),
        (sha256(b"a=2\0", empty), "a=2"),
    ]


async def test_secret_headers_are_not_written_down(parts: IntakeParts) -> None:
    given = delivery(event_id="e1")
    assert {KEY, SIGNATURE} <= given.headers.keys()
    await parts.take(given)
    ((text,),) = await select(parts.database, "select headers::text from webhook_logs")
    assert msgspec.json.decode(str(text)) == {"x-event-id": "e1", "x-event-type": "mail"}


async def test_what_is_not_believed_is_kept_in_part(parts: IntakeParts) -> None:
    body = bytes(range(256)) * 2
    for signed, verdict in (("", "bad-signature"), ("0" * 64, "bad-signature"), ("old", "stale")):
        given = delivery(body, signed=signed, query="a=1&secret=guess")
        assert await parts.take(given) == (verdict, "")
    await parts.refusals.flush()
    old, forged, unsigned = await select(parts.database, REFUSALS)
    digest = hashlib.sha256(body).digest()
    kept = ("POST", "", {}, body[:256], 512, digest, "192.0.2.7")
    assert old == ("shop", "stale", "signed long ago", *kept)
    detail = "x-signature is of something else\ufffd"
    assert forged == unsigned == ("shop", "bad-signature", detail, *kept)
    assert await counts(parts.database) == (0, 0, 0)


async def test_who_may_not_call_is_not_even_verified(database: Database) -> None:
    parts = intake_parts(database, allowed=("192.0.2.0/28", "2001:db8::1"))
    async with writing(parts.writer):
        for address, verdict in (
            ("192.0.2.15", "accepted"),
            ("::ffff:192.0.2.1", "duplicate"),
            ("192.0.2.16", "forbidden-address"),
            ("no address", "forbidden-address"),
        ):
            assert (await parts.take(delivery(address=address)))[0] == verdict
    assert [each.address for each in parts.source.seen] == ["192.0.2.15", "::ffff:192.0.2.1"]
    await parts.refusals.flush()
    details = [row[2] for row in await select(database, REFUSALS)]
    assert details == [
        f"{address} is not in allowed_addresses" for address in ("192.0.2.16", "no address")
    ]


async def test_only_believed_deliveries_use_up_the_rate(database: Database) -> None:
    parts = intake_parts(database, rate_per_second=2)

    async def told(*signed: str | None) -> list[str]:
        return [(await parts.take(delivery(signed=each)))[0] for each in signed]

    async with writing(parts.writer):
        assert await told("forged", "old", "forged") == ["bad-signature", "stale", "bad-signature"]
        assert await told(None, None, None) == ["accepted", "duplicate", "rate-limited"]
        parts.clock.advance(0.4)
        assert await told(None) == ["rate-limited"]
        parts.clock.advance(0.1)
        assert await told(None, None) == ["duplicate", "rate-limited"]
        # However long nothing came, no more than a second's worth is let through at once.
        parts.clock.advance(3_600)
        assert await told(None, None, None) == ["duplicate", "duplicate", "rate-limited"]
    assert await counts(database) == (1, 1, 1)


async def test_a_rate_of_one_a_second_and_none_at_all() -> None:
    slow = intake_parts(rate_per_second=1).gate
    assert [slow.take_turn() for _ in range(3)] == [True, False, False]
    free = intake_parts().gate
    assert {free.take_turn() for _ in range(10_000)} == {True}


def test_what_a_signature_does_not_cover_makes_no_other_event() -> None:
    """Whoever has seen a signed body can add a query to it, and must not make it count again."""
    sources = known_sources(Settings())
    for name in ("razorpay", "stripe", "sendgrid", "qstash", "easypost"):
        given = Delivery(method="POST", query="again=1", body=b"{}", received_at=0.0)
        assert sources[name].public_query(given) == "", name
