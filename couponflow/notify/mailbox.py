"""The local mailbox: where emails and SMS go while no provider is configured."""

from couponflow.kernel.handlers import (
    DONE,
    Handler,
    HandlerContext,
    HandlerPolicy,
    Outcome,
    RetryPolicy,
)
from couponflow.messages import EmailRequested, SmsRequested
from couponflow.notify.store import Notification, insert_notification

PROVIDER = "mailbox"
POLICY = HandlerPolicy(concurrency=20, timeout_seconds=30.0, retry=RetryPolicy())


async def deliver_email(message: EmailRequested, context: HandlerContext) -> Outcome:
    """Put an email into the mailbox, once."""
    async with context.transaction() as connection:
        await insert_notification(
            connection,
            Notification(
                id=context.message_id,
                channel=EmailRequested.channel,
                recipient=message.to,
                subject=message.subject,
                body=message.text,
                body_html=message.html,
                provider=PROVIDER,
                correlation_id=context.correlation_id,
            ),
        )
    return DONE


async def deliver_sms(message: SmsRequested, context: HandlerContext) -> Outcome:
    """Put an SMS into the mailbox, once."""
    async with context.transaction() as connection:
        await insert_notification(
            connection,
            Notification(
                id=context.message_id,
                channel=SmsRequested.channel,
                recipient=message.to,
                body=message.text,
                provider=PROVIDER,
                correlation_id=context.correlation_id,
            ),
        )
    return DONE


EMAIL_HANDLER = Handler("email", EmailRequested, deliver_email, POLICY)
SMS_HANDLER = Handler("sms", SmsRequested, deliver_sms, POLICY)
