"""The roles `email` and `sms`: each tells people things, and hears what became of that."""

from couponflow.kernel.consumer import ChannelConsumers, ConsumerParts
from couponflow.kernel.handlers import Handler, HandlerPolicy
from couponflow.kernel.role import Role, Stage
from couponflow.messages import EmailDeliveryReported, SmsDeliveryReported
from couponflow.notify.delivery_reports import apply_report, apply_reports
from couponflow.notify.mailbox import EMAIL_HANDLER, SMS_HANDLER


def email_handlers(report_policy: HandlerPolicy) -> tuple[Handler, ...]:
    """What the channel `emails` needs; the policy says how long a report waits for its email."""
    report = Handler(
        "email_report", EmailDeliveryReported, apply_report, report_policy, apply_reports
    )
    return EMAIL_HANDLER, report


def sms_handlers(report_policy: HandlerPolicy) -> tuple[Handler, ...]:
    """The same for the channel `sms`."""
    report = Handler("sms_report", SmsDeliveryReported, apply_report, report_policy, apply_reports)
    return SMS_HANDLER, report


def email_role(parts: ConsumerParts) -> Role:
    return Role("email", Stage.WORK, ChannelConsumers(parts).run)


def sms_role(parts: ConsumerParts) -> Role:
    return Role("sms", Stage.WORK, ChannelConsumers(parts).run)
