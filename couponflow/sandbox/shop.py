"""The shop: a program of somebody else, which has people told things through our API.

It is answered with the ids of the notifications, which SendGrid and MSG91 then report on: to them
an id of ours goes along with each email and SMS.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import anyio
import httpx2
import msgspec
import structlog
from anyio import to_thread

from couponflow.kernel.clock import Clock
from couponflow.sandbox.learnt import Learnt
from couponflow.sandbox.senders.made_up import person, token
from couponflow.sandbox.sending import Complaints, open_client

ASK_SECONDS = 10.0

_log = structlog.get_logger("couponflow.sandbox.shop")


class _Submitted(msgspec.Struct, frozen=True):
    message_id: str


_ANSWER = msgspec.json.Decoder(_Submitted)


async def ask_for_notifications(
    base_url: str,
    make_token: Callable[[], str],
    learnt: Learnt,
    *,
    randomness: random.Random,
    clock: Clock,
    stop: anyio.Event,
    transport: httpx2.AsyncBaseTransport | None = None,
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> Counter[str]:
    """Ask for an email and an SMS now and then until `stop` is set; trouble is never raised.

    Returns how many of each were taken, by channel.
    """
    taken: Counter[str] = Counter()
    complaints = Complaints(clock)
    learn = {"emails": learnt.asked_for_email, "sms": learnt.asked_for_sms}

    async def ask(client: httpx2.AsyncClient) -> None:
        while True:
            bearer = await to_thread.run_sync(make_token)
            for channel, message in _messages(randomness).items():
                try:
                    response = await client.post(
                        f"/api/v1/queue/{channel}",
                        headers={"authorization": f"Bearer {bearer}"},
                        content=msgspec.json.encode(message),
                    )
                    response.raise_for_status()
                    learn[channel](_ANSWER.decode(response.content).message_id)
                    taken[channel] += 1
                except (httpx2.HTTPError, msgspec.MsgspecError) as error:
                    if complaints.may_complain():
                        _log.warning("shop_not_served", channel=channel, last=str(error))
            await sleep(ASK_SECONDS)

    async with open_client(base_url, transport) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, client)
        await stop.wait()
        tasks.cancel_scope.cancel()
    return taken


def _messages(randomness: random.Random) -> dict[str, Mapping[str, str]]:
    """What somebody is told of an order, by channel."""
    buyer = person(randomness)
    number = f"CF-{token(randomness, 10).upper()}"
    text = f"Your order {number} has left our warehouse."
    return {
        "emails": {"to": buyer.email, "subject": f"Order {number}", "text": text},
        "sms": {"to": buyer.phone, "text": text},
    }
