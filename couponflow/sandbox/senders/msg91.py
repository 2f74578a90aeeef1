"""MSG91: delivery reports of text messages, in three of the formats that its webhooks have.

It signs nothing and gives its reports no id.
"""

import random
from collections.abc import Sequence
from typing import Literal, assert_never
from urllib.parse import urlencode

import msgspec

from couponflow.sandbox.senders.events import Event, Thing, Told
from couponflow.sandbox.senders.made_up import Course, digits, hex_id, ist_text, person

_Format = Literal["v2", "v3", "new"]
_FORM = "application/x-www-form-urlencoded"
_SENDER = {"senderId": "CPFLOW", "userId": "271828", "campaignName": "API"}


class _Step(msgspec.Struct, frozen=True):
    """What became of a text message, as couponflow and as MSG91 calls it."""

    state: str
    code: str
    words: str
    failure: str = ""


_SUBMITTED = _Step("sent", "8", "SUBMITTED")
_DELIVERED = _Step("delivered", "1", "DELIVERED")
_FAILED = _Step("failed", "2", "FAILED", "Absent subscriber")
_LIVES = ((_SUBMITTED, _DELIVERED), (_DELIVERED,), (_SUBMITTED, _FAILED), (_FAILED,))


def reports_by_notification(
    notification_ids: Sequence[str], began: int, randomness: random.Random
) -> list[Event]:
    """Reports of text messages with which an id of ours was handed on."""
    return [
        event
        for notification_id in notification_ids
        for event in _life(
            Thing("sms", notification_id),
            randomness.choice(("v2", "new")),
            hex_id(randomness, 24),
            notification_id,
            began,
            randomness,
        )
    ]


def reports_by_request(
    request_ids: Sequence[str], began: int, randomness: random.Random
) -> list[Event]:
    """Reports of text messages that only MSG91's own id tells apart."""
    return [
        event
        for request_id in request_ids
        for event in _life(
            Thing("sms", request_id, "msg91"), "v3", request_id, "", began, randomness
        )
    ]


def _life(
    thing: Thing,
    report_format: _Format,
    request_id: str,
    client_id: str,
    began: int,
    randomness: random.Random,
) -> list[Event]:
    course = Course(began, randomness)
    number = person(randomness).phone.removeprefix("+")
    message_id = digits(randomness, 10)
    events = []
    for step in randomness.choice(_LIVES):
        at = course.later(1, 600)
        report = _Report(step, ist_text(at), number, request_id, message_id, client_id)
        events.append(
            Event(
                source="msg91",
                event_id=f"{request_id} {number} {step.code} {report.date}",
                event_type=report_format,
                content_type=_FORM if report_format == "v2" else "application/json",
                body=report.written(report_format),
                told=(Told(thing, step.state, at),),
            )
        )
    return events


class _Report(msgspec.Struct, frozen=True):
    """What a report says, whichever way it is written."""

    step: _Step
    date: str
    number: str
    request_id: str
    message_id: str
    client_id: str

    def written(self, report_format: _Format) -> bytes:
        ids = {"INMSID": self.message_id, "CRQID": self.client_id}
        old = {"date": self.date, "number": self.number, "desc": self.step.words, "credit": "1"}
        common = {"status": self.step.code, **ids}
        match report_format:
            case "v2":
                own = {"failedReason": self.step.failure, "clientid": self.client_id}
                reports = [{**old, **common, **own}]
                batch = [{**_SENDER, "requestId": self.request_id, "report": reports}]
                return urlencode({"data": msgspec.json.encode(batch).decode()}).encode()
            case "v3":
                whole = {"requestId": self.request_id, "amount": "0.25", **_SENDER}
                return msgspec.json.encode({**old, **common, **whole})
            case "new":
                designed = {
                    "requestId": self.request_id,
                    "deliveryTime": self.date,
                    "telNum": self.number,
                    "clientId": self.client_id,
                    "failureReason": self.step.failure,
                }
                return msgspec.json.encode({**common, **designed, **_SENDER})
            case _:
                assert_never(report_format)
