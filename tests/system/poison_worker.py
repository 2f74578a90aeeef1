"""The daemon, with a handler for emails that kills it when the text says so."""

import os
import signal

from couponflow import cli, worker_wiring
from couponflow.kernel.handlers import Handler, HandlerContext, HandlerPolicy, Outcome
from couponflow.messages import EmailRequested
from couponflow.notify.mailbox import POLICY, deliver_email

POISON = "poison"


async def deliver_or_die(message: EmailRequested, context: HandlerContext) -> Outcome:
    """Deliver an email; poison ends the process as a fault in a library would."""
    if message.text == POISON:
        os.kill(os.getpid(), signal.SIGKILL)
    return await deliver_email(message, context)


def deadly_handlers(report_policy: HandlerPolicy) -> tuple[Handler, ...]:
    return (Handler("email", EmailRequested, deliver_or_die, POLICY),)


if __name__ == "__main__":
    worker_wiring.email_handlers = deadly_handlers
    cli.main()
