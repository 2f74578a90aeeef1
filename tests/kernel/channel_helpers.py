"""What tests of channels say again and again."""

from collections.abc import Sequence

import anyio
import anyio.lowlevel

from couponflow.kernel.channel import Channel, Delivery, Subscription
from couponflow.messages import Click

PATIENCE_SECONDS = 20.0
LONGER_THAN_ANY_TEST = 600.0
POLL_SECONDS = 0.001


def clicks(*numbers: int) -> list[Click]:
    return [
        Click(
            click_id=str(number),
            merchant_id="merchant",
            offer_id="offer",
            user_id="user",
            clicked_at=1_790_000_000.0,
            ip="192.0.2.1",
            user_agent="a browser",
            referer="",
            verdict="human",
        )
        for number in numbers
    ]


def numbers(deliveries: Sequence[Delivery[Click]]) -> list[int]:
    return [int(delivery.message.click_id) for delivery in deliveries]


def attempts(deliveries: Sequence[Delivery[Click]]) -> list[tuple[int, int]]:
    """Which message, handed out for the how-many-eth time."""
    return [(int(each.message.click_id), each.attempt) for each in deliveries]


async def receive_exactly(subscription: Subscription[Click], count: int) -> list[Delivery[Click]]:
    """Receive until `count` messages have come, in as many batches as the channel likes."""
    received: list[Delivery[Click]] = []
    while len(received) < count:
        received += await subscription.receive(count - len(received), 0.0)
    return received


async def pass_turns(count: int) -> None:
    """Let the other tasks run, so often: cancellations then hit them at different places."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def publishers_wait(channel: Channel[Click], count: int) -> None:
    while True:
        now = await channel.statistics()
        if now.waiting_publishers == count:
            return
        await anyio.sleep(POLL_SECONDS)


async def counts(channel: Channel[Click]) -> tuple[int, int, int, int, int, int]:
    """Depth, in flight, published, acknowledged, rejected and redelivered."""
    now = await channel.statistics()
    return (
        now.depth,
        now.in_flight,
        now.published,
        now.acknowledged,
        now.rejected,
        now.redelivered,
    )
