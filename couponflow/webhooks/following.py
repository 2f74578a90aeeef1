"""What follows from an event: the messages its source makes of it, with ids that never change."""

import uuid

from couponflow.kernel.outbox import Outgoing
from couponflow.webhooks.contract import Source, StoredEvent

# Any fixed value does: it keeps the ids made here apart from all others.
_NAMESPACE = uuid.UUID("6b7a1f0e-94b5-5c1a-8d1f-2f3b0c9e7a44")


def following(source: Source, event: StoredEvent) -> list[Outgoing]:
    """The messages that follow from an event, each with the id it has whenever this is asked.

    An event that is told again, in another delivery or by a replay, is followed by messages of the
    same ids: what was done, waits or is dead is known by them. Raises `EventUnreadable`.
    """
    made: dict[str, Outgoing] = {}
    for place, translated in enumerate(source.translate(event)):
        named = translated.event_id or f"{event.event_id}\0{place}"
        message_id = str(uuid.uuid5(_NAMESPACE, f"{source.name}\0{named}"))
        # A batch may hold the same event twice.
        made.setdefault(
            message_id,
            Outgoing(
                message=translated.message,
                correlation_id=event.webhook_id,
                message_id=message_id,
            ),
        )
    return list(made.values())
