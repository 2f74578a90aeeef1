"""What the outside world learns of us by taking part; it never looks inside."""

from collections import deque

from couponflow.sandbox.senders.script import Known

CLICKS_KEPT = 500
NOTIFICATIONS_KEPT = 100


class Learnt:
    """The latest ids that somebody outside was given: of clicks in links, of notifications."""

    def __init__(self) -> None:
        self._click_ids: deque[str] = deque(maxlen=CLICKS_KEPT)
        self._email_ids: deque[str] = deque(maxlen=NOTIFICATIONS_KEPT)
        self._sms_ids: deque[str] = deque(maxlen=NOTIFICATIONS_KEPT)

    def landed(self, click_id: str) -> None:
        """A shopper came to a network by a link with this click id in it."""
        self._click_ids.append(click_id)

    def asked_for_email(self, notification_id: str) -> None:
        self._email_ids.append(notification_id)

    def asked_for_sms(self, notification_id: str) -> None:
        self._sms_ids.append(notification_id)

    def take(self) -> Known:
        """What events can tell of now. Of a notification they tell once: it has one life."""
        known = Known(
            email_notification_ids=tuple(self._email_ids),
            sms_notification_ids=tuple(self._sms_ids),
            click_ids=tuple(self._click_ids),
        )
        self._email_ids.clear()
        self._sms_ids.clear()
        return known
