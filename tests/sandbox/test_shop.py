"""The shop asks through the API as any program does, and remembers what it was answered."""

import itertools
import random

import anyio
import httpx2
import msgspec
from structlog.testing import capture_logs

from couponflow.kernel.clock import ManualClock
from couponflow.messages import CHANNELS, Message, message_decoder
from couponflow.sandbox.learnt import Learnt
from couponflow.sandbox.shop import ASK_SECONDS, ask_for_notifications


class Api:
    """Takes messages, or is in trouble; the shop stops after some rounds."""

    def __init__(self, rounds: int) -> None:
        self.clock = ManualClock()
        self.stop = anyio.Event()
        self.taken: list[tuple[str, Message]] = []
        self.tokens: list[str] = []
        self._rounds = rounds
        self._numbers = itertools.count()

    async def sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self._rounds -= 1
        if not self._rounds:
            self.stop.set()
            await anyio.sleep_forever()

    async def take(self, request: httpx2.Request) -> httpx2.Response:
        channel = request.url.path.removeprefix("/api/v1/queue/")
        self.tokens.append(request.headers["authorization"])
        # As the API reads it: without a type it is the first of its channel.
        types = CHANNELS[channel]
        body = {"type": types[0].__struct_config__.tag, **msgspec.json.decode(request.content)}
        message = message_decoder(types).decode(msgspec.json.encode(body))
        self.taken.append((channel, message))
        answer = {"message_id": f"id-{len(self.taken)}", "correlation_id": "c"}
        return httpx2.Response(202, json=answer)

    async def fail(self, request: httpx2.Request) -> httpx2.Response:
        match next(self._numbers) % 3:
            case 0:
                raise httpx2.ConnectError("refused", request=request)
            case 1:
                return httpx2.Response(503)
            case _:
                return httpx2.Response(202, text="no JSON")


async def test_what_it_asked_for_can_be_reported_on() -> None:
    api, learnt, numbers = Api(rounds=3), Learnt(), itertools.count(1)
    with anyio.fail_after(20):
        taken = await ask_for_notifications(
            "http://api",
            lambda: f"token-{next(numbers)}",
            learnt,
            randomness=random.Random(1),
            clock=api.clock,
            stop=api.stop,
            transport=httpx2.MockTransport(api.take),
            sleep=api.sleep,
        )
    assert taken == {"emails": 3, "sms": 3}
    known = learnt.take()
    assert known.email_notification_ids == ("id-1", "id-3", "id-5")
    assert known.sms_notification_ids == ("id-2", "id-4", "id-6")
    # A token is made anew each time, so that the shop may go on for longer than one is good.
    assert [token.removeprefix("Bearer token-") for token in api.tokens] == list("112233")


async def test_trouble_is_logged_at_a_bounded_rate_and_never_raised() -> None:
    api, learnt = Api(rounds=9), Learnt()
    with anyio.fail_after(20), capture_logs() as logs:
        taken = await ask_for_notifications(
            "http://api",
            lambda: "token",
            learnt,
            randomness=random.Random(2),
            clock=api.clock,
            stop=api.stop,
            transport=httpx2.MockTransport(api.fail),
            sleep=api.sleep,
        )
    assert taken.total() == 0
    assert learnt.take().sms_notification_ids == ()
    warnings = [line for line in logs if line["event"] == "shop_not_served"]
    assert 1 < len(warnings) <= api.clock.monotonic() / ASK_SECONDS + 1
