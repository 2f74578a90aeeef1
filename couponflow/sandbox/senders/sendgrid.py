"""SendGrid: what it tells of emails, in batches that end in CR LF."""

import random
from collections.abc import Sequence

import msgspec

from couponflow.sandbox.senders.events import Event, Thing, Told
from couponflow.sandbox.senders.made_up import Course, hex_id, person, token

_LIVES = (
    ("processed", "delivered"),
    ("processed", "delivered", "open", "click"),
    ("processed", "deferred", "delivered", "open"),
    ("processed", "deferred", "bounce"),
    ("processed", "bounce"),
    ("processed", "dropped"),
    ("processed", "delivered", "spamreport"),
)
_STATES = {
    "processed": "sent",
    "deferred": "deferred",
    "delivered": "delivered",
    "dropped": "dropped",
    "bounce": "bounced",
    "spamreport": "complained",
}
_EXTRAS: dict[str, dict[str, object]] = {
    "processed": {},
    "deferred": {"response": "452 4.2.2 mailbox full", "attempt": "1"},
    "delivered": {"response": "250 2.0.0 OK", "tls": 1, "ip": "192.0.2.25"},
    "bounce": {"type": "bounce", "status": "5.1.1", "reason": "550 5.1.1 user unknown"},
    "dropped": {"reason": "Bounced Address", "status": "5.0.0"},
    "spamreport": {},
    "open": {"useragent": "Mozilla/5.0", "ip": "203.0.113.9"},
    "click": {
        "useragent": "Mozilla/5.0",
        "ip": "203.0.113.9",
        "url": "https://coupons.example/orders",
        "url_offset": {"index": 0, "type": "html"},
    },
}
_MAX_BATCH = 6
_REPEAT_PROBABILITY = 0.3


def email_events(
    notification_ids: Sequence[str], began: int, randomness: random.Random
) -> list[Event]:
    """Batches about these notifications, each an email of its own.

    Now and then a batch repeats an event of the one before it.
    """
    written = sorted(
        (
            happened
            for notification_id in notification_ids
            for happened in _life(notification_id, randomness.choice(_LIVES), began, randomness)
        ),
        key=lambda happened: happened.at,
    )
    batches = []
    repeated: list[_Happened] = []
    while written:
        size = randomness.randint(1, _MAX_BATCH)
        batch, written = written[:size], written[size:]
        batches.append(_batch([*repeated, *batch], randomness))
        repeated = [randomness.choice(batch)] if randomness.random() < _REPEAT_PROBABILITY else []
    return batches


def engagement_events(began: int, randomness: random.Random) -> list[Event]:
    """A batch about an email of nobody's notification: it was opened and clicked, no more."""
    return [_batch(_life("", ("open", "click"), began, randomness), randomness)]


class _Happened(msgspec.Struct, frozen=True):
    at: int
    entry: dict[str, object]
    told: tuple[Told, ...]


def _life(
    notification_id: str, names: Sequence[str], began: int, randomness: random.Random
) -> list[_Happened]:
    course = Course(began, randomness)
    sender = token(randomness, 22)
    common: dict[str, object] = {
        "email": person(randomness).email,
        "smtp-id": f"<{sender}@ismtpd-{randomness.randint(1, 40)}>",
        "category": ["order"],
        "sg_message_id": f"{sender}.filterdrecv-{hex_id(randomness, 10)}-1-0.0",
        "purpose": "order",
    }
    if notification_id:
        common["notification_id"] = notification_id
    lived = []
    for name in names:
        at = course.later(1, 600)
        entry = {
            **common,
            "timestamp": at,
            "event": name,
            "sg_event_id": token(randomness, 44),
            **_EXTRAS[name],
        }
        state = _STATES.get(name)
        told = (Told(Thing("email", notification_id), state, at),) if state else ()
        lived.append(_Happened(at, entry, told if notification_id else ()))
    return lived


def _batch(happened: Sequence[_Happened], randomness: random.Random) -> Event:
    body = msgspec.json.encode([each.entry for each in happened]) + b"\r\n"
    return Event(
        source="sendgrid",
        event_id=f"batch_{token(randomness, 22)}",
        event_type="batch",
        body=body,
        told=tuple(told for each in happened for told in each.told),
    )
