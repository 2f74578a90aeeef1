"""The roles `email` and `sms`: each consumes its channel with one handler."""

from couponflow.kernel.consumer import ChannelConsumers, ConsumerParts
from couponflow.kernel.handlers import Handler
from couponflow.kernel.role import Role, Stage
from couponflow.notify.mailbox import EMAIL_HANDLER, SMS_HANDLER

EMAIL_HANDLERS: tuple[Handler, ...] = (EMAIL_HANDLER,)
SMS_HANDLERS: tuple[Handler, ...] = (SMS_HANDLER,)


def email_role(parts: ConsumerParts) -> Role:
    return Role("email", Stage.WORK, ChannelConsumers(parts).run)


def sms_role(parts: ConsumerParts) -> Role:
    return Role("sms", Stage.WORK, ChannelConsumers(parts).run)
