"""What was learnt is handed on: clicks as often as anybody asks, a notification once."""

from couponflow.sandbox.learnt import CLICKS_KEPT, NOTIFICATIONS_KEPT, Learnt
from couponflow.sandbox.senders.script import NOTHING_KNOWN


def test_a_click_may_have_several_sales_and_a_notification_one_life() -> None:
    learnt = Learnt()
    assert learnt.take() == NOTHING_KNOWN
    learnt.landed("click")
    learnt.asked_for_email("email")
    learnt.asked_for_sms("sms")
    first, second = learnt.take(), learnt.take()
    assert first.click_ids == second.click_ids == ("click",)
    assert (first.email_notification_ids, first.sms_notification_ids) == (("email",), ("sms",))
    assert (second.email_notification_ids, second.sms_notification_ids) == ((), ())


def test_only_the_latest_are_kept() -> None:
    learnt = Learnt()
    for number in range(CLICKS_KEPT + 10):
        learnt.landed(str(number))
        learnt.asked_for_email(str(number))
        learnt.asked_for_sms(str(number))
    known = learnt.take()
    assert len(known.click_ids) == CLICKS_KEPT
    assert len(known.email_notification_ids) == NOTIFICATIONS_KEPT
    assert len(known.sms_notification_ids) == NOTIFICATIONS_KEPT
    assert known.click_ids[-1] == known.sms_notification_ids[-1] == str(CLICKS_KEPT + 9)
