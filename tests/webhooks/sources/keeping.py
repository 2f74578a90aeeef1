"""What intake keeps of a delivery, and what the inbox makes of that."""

import msgspec

from couponflow.messages import CHANNELS, Message, message_decoder
from couponflow.webhooks.contract import Delivery, EventUnreadable, Source, StoredEvent
from tests.webhooks.sources.mutations import WEBHOOK_ID, check_that_nothing_is_raised


def kept(source: Source, delivery: Delivery) -> StoredEvent:
    identity = source.identify(delivery)
    return StoredEvent(
        webhook_id=WEBHOOK_ID,
        event_type=identity.event_type,
        event_id=identity.event_id or "sha256:0",
        method=delivery.method,
        query=source.public_query(delivery),
        headers={
            name: value
            for name, value in delivery.headers.items()
            if name not in source.secret_header_names
        },
        body=delivery.body,
        received_at=delivery.received_at,
    )


def messages(source: Source, delivery: Delivery) -> list[Message]:
    return [translated.message for translated in source.translate(kept(source, delivery))]


def check_that_it_holds(source: Source, delivery: Delivery) -> None:
    """It is refused and named; were it believed, its messages would fit, or it is unreadable."""
    check_that_nothing_is_raised(source, delivery)
    try:
        made = messages(source, delivery)
    except EventUnreadable:
        return
    for message in made:
        decoder = message_decoder(CHANNELS[message.channel])
        assert decoder.decode(msgspec.json.encode(message)) == message
