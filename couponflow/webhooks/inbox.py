"""Turns an accepted event into what follows from it, once.

The messages that follow are published in the transaction that records the event as done. Their ids
are made from the event, so however often it is told or replayed, each is published once and has its
effect once.
"""

from collections.abc import Mapping, Sequence

from couponflow.kernel import audit_log
from couponflow.kernel.database import Connection
from couponflow.kernel.dead_letters import DeadLetter, bury
from couponflow.kernel.handlers import (
    DONE,
    Handler,
    HandlerContext,
    HandlerPolicy,
    MessageUnfit,
    NotKnownHere,
    Outcome,
    Told,
)
from couponflow.kernel.outbox import Outgoing, publish_many
from couponflow.messages import (
    AuditReported,
    FailureReported,
    MetricReported,
    WebhookAccepted,
)
from couponflow.webhooks.contract import EventUnreadable, Source
from couponflow.webhooks.following import following
from couponflow.webhooks.store import insert_metric, read_events

POLICY = HandlerPolicy(concurrency=20)


class Inbox:
    """The handlers of channel `webhooks`."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources

    def handlers(self) -> tuple[Handler, ...]:
        return (
            Handler("inbox", WebhookAccepted, self.pass_on, POLICY, self.pass_on_together),
            Handler("analytics.audit", AuditReported, write_audit, POLICY),
            Handler("analytics.metric", MetricReported, keep_metric, POLICY),
            Handler("analytics.dlq", FailureReported, keep_failure, POLICY),
        )

    async def pass_on(self, message: WebhookAccepted, context: HandlerContext) -> Outcome:
        """Publish what follows from an event, unless it was published before."""
        source = self._sources.get(message.source)
        if source is None:
            # Of another version, or a generic one that other daemons know.
            raise NotKnownHere(
                f"there is no source {message.source} here: give this daemon the same"
                " generic_webhooks as the others; if it is dead by then, replay it"
            )
        async with context.transaction() as connection:
            events = await read_events(connection, [message])
            event = events.get(message.webhook_id)
            if event is None:
                raise MessageUnfit(
                    f"webhook_logs has no verified event {message.webhook_id} of that time",
                    permanent=True,
                )
            try:
                await publish_many(connection, following(source, event), unknown_only=True)
            except (EventUnreadable, ValueError) as error:
                raise MessageUnfit(
                    f"{message.source} {event.event_type or 'event'}: {error}", permanent=True
                ) from error
        return DONE

    async def pass_on_together(
        self, told: Sequence[Told[WebhookAccepted]], connection: Connection
    ) -> Sequence[str]:
        """The same for several events; one that cannot be passed on is left out, to be judged."""
        events = await read_events(connection, [each.message for each in told])
        outgoing: list[Outgoing] = []
        done: list[str] = []
        for each in told:
            source = self._sources.get(each.message.source)
            event = events.get(each.message.webhook_id)
            if source is None or event is None:
                continue
            try:
                outgoing += following(source, event)
            except EventUnreadable:
                continue
            done.append(each.message_id)
        await publish_many(connection, outgoing, unknown_only=True)
        return done


async def write_audit(message: AuditReported, context: HandlerContext) -> Outcome:
    """Write into `audit_logs` what another service did."""
    async with context.transaction() as connection:
        await audit_log.record(
            connection,
            actor=f"service:{message.actor}",
            action=message.action,
            subject=message.subject,
            details={"message_id": context.message_id, **message.details},
        )
    return DONE


async def keep_metric(message: MetricReported, context: HandlerContext) -> Outcome:
    """Keep what another service measured."""
    async with context.transaction() as connection:
        await insert_metric(connection, context.message_id, message)
    return DONE


async def keep_failure(message: FailureReported, context: HandlerContext) -> Outcome:
    """Keep a message that another service gave up among our dead letters."""
    async with context.transaction() as connection:
        await bury(
            connection,
            [
                DeadLetter(
                    id=context.message_id,
                    channel=message.origin,
                    # Not the id of the message that tells of it, which is done.
                    message_id=f"reported {context.message_id}",
                    message=message.message_json.encode(),
                    reason=message.reason or "another service gave it up",
                    attempts=1,
                    # A story of its own: the event that told of it is no failure.
                    correlation_id=context.message_id,
                    published_at=context.published_at,
                )
            ],
        )
    return DONE
