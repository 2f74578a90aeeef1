from couponflow.kernel.handlers import HandlerPolicy, RetryPolicy
from couponflow.messages import CHANNELS
from couponflow.notify.delivery_reports import apply_reports
from couponflow.notify.mailbox import POLICY
from couponflow.notify.role import email_handlers, sms_handlers

PATIENT = HandlerPolicy(retry=RetryPolicy(max_attempts=9))


def test_there_is_a_handler_for_all_that_the_channels_carry() -> None:
    for handlers, channel in ((email_handlers, "emails"), (sms_handlers, "sms")):
        assert [each.message_type for each in handlers(PATIENT)] == list(CHANNELS[channel])


def test_reports_have_a_patience_of_their_own() -> None:
    for handlers in (email_handlers, sms_handlers):
        assert [each.policy for each in handlers(PATIENT)] == [POLICY, PATIENT]


def test_reports_may_be_applied_several_at_once() -> None:
    for handlers in (email_handlers, sms_handlers):
        assert [each.run_together for each in handlers(PATIENT)] == [None, apply_reports]
