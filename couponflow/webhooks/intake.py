"""One delivery: is it believed, was it taken before, is it written down."""

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from couponflow.kernel.clock import Clock
from couponflow.kernel.dead_letters import storable_text
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.messages import WebhookAccepted
from couponflow.webhooks.address_list import AddressList
from couponflow.webhooks.contract import Delivery, Identity, RefusalReason, Refused, Source
from couponflow.webhooks.refusals import RefusalLog
from couponflow.webhooks.store import EventRow
from couponflow.webhooks.writer import EventWriter, Stored

EVENT_ID_CHARACTERS_MAX = 300
"""A longer one is known by its hash: an index holds no more than a few thousand bytes."""
EVENT_TYPE_CHARACTERS_MAX = 200

Verdict = Stored | RefusalReason | Literal["rate-limited"]
_encode = msgspec.json.Encoder().encode


class Gate:
    """One source, and what is let through of it."""

    def __init__(
        self,
        source: Source,
        allowed: AddressList,
        rate_per_second: float,
        clock: Clock,
        concurrency: int,
    ) -> None:
        self.source = source
        self._concurrency = concurrency
        # A server's thread takes places, too: to pop and to append are whole under the
        # interpreter lock, to count up and down is not.
        self._places: deque[None] = deque([None] * concurrency)
        self._allowed = allowed
        self._rate = rate_per_second
        self._clock = clock
        self._tokens = rate_per_second
        self._filled_at = clock.monotonic()

    @property
    def in_flight(self) -> int:
        """How many requests of the source are at work."""
        return self._concurrency - len(self._places)

    def take_place(self) -> bool:
        """Count a request in, unless its source has too many; `give_back_place` counts it out."""
        try:
            self._places.pop()
        except IndexError:
            return False
        return True

    def give_back_place(self) -> None:
        self._places.append(None)

    @property
    def is_open(self) -> bool:
        """Whether it may be called from anywhere."""
        return not self._allowed

    def refuses_address(self, address: str) -> Refused | None:
        """Whether the sender is not allowed to call from there."""
        if self._allowed and address not in self._allowed:
            return Refused("forbidden-address", f"{address} is not in allowed_addresses")
        return None

    def refuses(self, delivery: Delivery) -> Refused | None:
        """Whether the sender is not allowed to call from there, or did not make it."""
        return self.refuses_address(delivery.address) or self.source.verify(delivery)

    def take_turn(self) -> bool:
        """Count one more event, unless that is more than the rate allows.

        Asked of believed deliveries only: who cannot sign must not use up what the sender may send.
        """
        if not self._rate:
            return True
        now = self._clock.monotonic()
        filled = self._tokens + (now - self._filled_at) * self._rate
        self._tokens, self._filled_at = min(self._rate, filled), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Intake:
    """Judges deliveries and has the believed ones written down."""

    def __init__(self, writer: EventWriter, refusals: RefusalLog, ids: Uuid7Generator) -> None:
        self._writer = writer
        self._refusals = refusals
        self._ids = ids

    def take(self, gate: Gate, delivery: Delivery, answer: Callable[[Verdict, str], None]) -> None:
        """Judge one; `answer` is called once, now or when it is stored, with the event's id here.

        The id is empty for what is not written down, except that of a duplicate, which is not the
        one under which it is known.
        """
        refused = gate.refuses(delivery)
        if refused is not None:
            self._refusals.note(gate.source.name, delivery, refused)
            answer(refused.reason, "")
            return
        if not gate.take_turn():
            answer("rate-limited", "")
            return
        row = self._row(gate.source, delivery)
        self._writer.submit(row, lambda stored: answer(stored, row.webhook_id))

    def turn_away(self, gate: Gate, delivery: Delivery, refused: Refused) -> None:
        """Note a delivery that is refused before its body is read."""
        self._refusals.note(gate.source.name, delivery, refused)

    def _row(self, source: Source, delivery: Delivery) -> EventRow:
        received_at = delivery.received_at
        webhook_id = self._ids.make(received_at)
        digest = hashlib.sha256(delivery.body).digest()
        identity = source.identify(delivery)
        query = source.public_query(delivery)
        message = WebhookAccepted(
            webhook_id=webhook_id, source=source.name, received_at=received_at
        )
        return EventRow(
            webhook_id=webhook_id,
            received_at=received_at,
            source=source.name,
            event_type=storable_text(identity.event_type[:EVENT_TYPE_CHARACTERS_MAX]),
            event_id=_event_id(identity, delivery, query, digest),
            method=delivery.method,
            query=storable_text(query) if query else "",
            headers=_kept_headers(source, delivery),
            body=delivery.body,
            body_sha256=digest,
            address=delivery.address,
            message=_encode(message).decode(),
        )


def _event_id(identity: Identity, delivery: Delivery, query: str, digest: bytes) -> str:
    """The sender's id; else a hash of all that it said."""
    event_id = identity.event_id
    if event_id:
        if len(event_id) <= EVENT_ID_CHARACTERS_MAX and event_id.isprintable():
            return event_id
        text = event_id.encode(errors="surrogatepass")
        return f"sha256:{hashlib.sha256(text).hexdigest()}"
    if query:
        digest = hashlib.sha256(query.encode(errors="surrogatepass") + b"\0" + digest).digest()
    return f"sha256:{digest.hex()}"


def _kept_headers(source: Source, delivery: Delivery) -> str:
    secret = source.secret_header_names
    kept = delivery.headers
    if secret:
        kept = {name: value for name, value in kept.items() if name not in secret}
    return _encode(kept).decode()
