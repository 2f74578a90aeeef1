"""Catalogue rows, clicks and headers that many tests start from."""

from collections.abc import Callable
from datetime import datetime

import anyio
import msgspec
import psycopg

from couponflow.messages import Click

MERCHANT_ID = "01920000-0000-7000-8000-00000000000a"
OTHER_MERCHANT_ID = "01920000-0000-7000-8000-00000000000b"
OFFER_ID = "01920000-0000-7000-8000-0000000000c1"
OTHER_OFFER_ID = "01920000-0000-7000-8000-0000000000c2"
USER_ID = "01920000-0000-7000-8000-0000000000d1"
CLICKED_AT = 1_790_000_000.0
"""2026-09-21 13:33:20 UTC, when a `ManualClock` begins."""
TEMPLATE = "https://go.example/c?sub={click_id}&to={url}"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
POLL_SECONDS = 0.005
PATIENCE_SECONDS = 20.0


class FakeHeaders:
    """A request's headers, as both servers show them."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self.pairs = pairs

    def get(self, key: str, /) -> str | None:
        return next((value for name, value in self.pairs if name == key), None)

    def __contains__(self, key: str, /) -> bool:
        return any(name == key for name, _ in self.pairs)

    def get_all(self, key: str, /) -> list[str]:
        return [value for name, value in self.pairs if name == key]


FROM_A_BROWSER = FakeHeaders(("user-agent", BROWSER))


def make_click(number: int = 1, **changes: str | float) -> Click:
    """A click that can be stored; `number` makes its id."""
    click = Click(
        click_id=f"01920000-0000-7000-9000-{number:012x}",
        merchant_id=MERCHANT_ID,
        offer_id=OFFER_ID,
        user_id=USER_ID,
        clicked_at=CLICKED_AT,
        ip="192.0.2.1",
        user_agent=BROWSER,
        referer="",
        verdict="human",
    )
    return msgspec.structs.replace(click, **changes)


async def insert_merchant(
    connection: psycopg.AsyncConnection,
    merchant_id: str = MERCHANT_ID,
    slug: str = "zenmart",
    *,
    template: str = TEMPLATE,
    fallback_url: str | None = None,
) -> None:
    await connection.execute(
        "insert into merchants (id, slug, name, network, tracking_template, fallback_url,"
        " cashback_percent) values (%s, %s, initcap(%s), 'cj', %s, %s, 5)",
        [merchant_id, slug, slug, template, fallback_url],
    )


async def insert_offer(
    connection: psycopg.AsyncConnection,
    offer_id: str = OFFER_ID,
    merchant_id: str = MERCHANT_ID,
    *,
    url: str = "https://shop.example/a?b=c",
    starts_at: datetime | None = None,
    expires_at: datetime | None = None,
    active: bool = True,
) -> None:
    await connection.execute(
        "insert into offers (id, merchant_id, title, url, starts_at, expires_at, active)"
        " values (%s, %s, 'An offer', %s, %s, %s, %s)",
        [offer_id, merchant_id, url, starts_at, expires_at, active],
    )


async def insert_catalogue(connection: psycopg.AsyncConnection) -> None:
    """Two merchants with an offer each."""
    await insert_merchant(connection)
    await insert_offer(connection)
    await insert_merchant(connection, OTHER_MERCHANT_ID, "aabazaar")
    await insert_offer(connection, OTHER_OFFER_ID, OTHER_MERCHANT_ID)


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds, which must be soon."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await anyio.sleep(POLL_SECONDS)


async def rows_of(url: str, query: str) -> list[tuple[object, ...]]:
    """The rows of a query, as somebody else sees them."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        return await (await connection.execute(query.encode())).fetchall()
