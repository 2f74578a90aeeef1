"""The SQL of orders and of what is reported for them, always in the caller's transaction."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import assert_never

import msgspec

from couponflow.kernel.database import load_queries
from couponflow.kernel.database_connection import Connection
from couponflow.messages import (
    CheckoutRequested,
    OrderCreated,
    OrderItem,
    PaymentReported,
    RefundReported,
    ShipmentReported,
    StockReported,
)

_queries = load_queries("checkout")


class OrderNames(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody calls an order: by its number, or as a payment provider does."""

    number: str | None
    provider: str | None = None
    provider_order_id: str | None = None


async def put_order(
    connection: Connection, new_id: str, message: CheckoutRequested | OrderCreated
) -> bool:
    """Make the order or replace what stands of it; say whether this message stands now."""
    match message:
        case CheckoutRequested():
            is_confirmed, told_at = False, message.requested_at
        case OrderCreated():
            is_confirmed, told_at = True, message.created_at
        case _:
            assert_never(message)
    cursor = await connection.execute(
        _queries["put_order"],
        {
            **msgspec.structs.asdict(message),
            "id": new_id,
            "is_confirmed": is_confirmed,
            "told_at": told_at,
            "content_sha256": hashlib.sha256(msgspec.json.encode(message)).digest(),
        },
    )
    return await cursor.fetchone() is not None


async def replace_items(connection: Connection, order_id: str, items: Sequence[OrderItem]) -> None:
    await connection.execute(_queries["delete_items"], {"order_id": order_id})
    await connection.execute(
        _queries["insert_items"],
        {
            "order_id": order_id,
            "skus": [item.sku for item in items],
            "quantities": [item.quantity for item in items],
            "unit_prices_minor": [item.unit_price_minor for item in items],
        },
    )


async def lock_orders(connection: Connection, names: Sequence[OrderNames]) -> list[list[str]]:
    """For each the ids of the orders so called, which no other transaction changes now."""
    cursor = await connection.execute(
        _queries["lock_orders"],
        {
            "order_numbers": [each.number for each in names],
            "providers": [each.provider for each in names],
            "provider_order_ids": [each.provider_order_id for each in names],
        },
    )
    found: list[list[str]] = [[] for _ in names]
    for place, order_id in await cursor.fetchall():
        found[place - 1].append(order_id)
    return found


async def name_orders(connection: Connection, names: Iterable[tuple[str, str, str]]) -> None:
    """Remember what providers call orders: provider, its id for the order, our id."""
    in_order = sorted(set(names))
    if in_order:
        providers, provider_order_ids, order_ids = zip(*in_order, strict=True)
        await connection.execute(
            _queries["name_orders"],
            {
                "providers": list(providers),
                "provider_order_ids": list(provider_order_ids),
                "order_ids": list(order_ids),
            },
        )


async def refresh_orders(connection: Connection, order_ids: Iterable[str]) -> None:
    """Derive the states of locked orders from their payments."""
    await connection.execute(_queries["refresh_orders"], {"order_ids": sorted(set(order_ids))})


class PaymentOfOrder(msgspec.Struct, frozen=True):
    """A report of a payment, and the locked order it is for."""

    new_id: str
    """Of its row, if it gets one."""
    order_id: str
    report: PaymentReported

    @property
    def key(self) -> tuple[str, str]:
        return self.report.provider, self.report.payment_id


async def put_payments(
    connection: Connection, payments: Sequence[PaymentOfOrder]
) -> dict[tuple[str, str], str]:
    """The ids of the rows by `key`; a payment of another order is missing, and nothing is done.

    Each payment may be there once.
    """
    reports = [
        {**msgspec.structs.asdict(each.report), "id": each.new_id, "order_id": each.order_id}
        for each in payments
    ]
    cursor = await connection.execute(
        _queries["put_payments"], {"reports": msgspec.json.encode(reports).decode()}
    )
    return {(row[0], row[1]): row[2] for row in await cursor.fetchall()}


async def lock_payment(
    connection: Connection, provider: str, payment_id: str
) -> tuple[str, str] | None:
    """The ids of a payment and of its order, which no other transaction changes now."""
    cursor = await connection.execute(
        _queries["lock_payment"], {"provider": provider, "payment_id": payment_id}
    )
    row = await cursor.fetchone()
    return None if row is None else (str(row[0]), str(row[1]))


async def put_refund(
    connection: Connection, new_id: str, payment_id: str, message: RefundReported
) -> bool:
    """Say whether the refund is one of this payment; otherwise nothing is done."""
    cursor = await connection.execute(
        _queries["put_refund"],
        {**msgspec.structs.asdict(message), "id": new_id, "of_payment": payment_id},
    )
    return await cursor.fetchone() is not None


async def refresh_payments(connection: Connection, payment_ids: Iterable[str]) -> None:
    """Add up what was sent back of payments whose orders are locked."""
    await connection.execute(
        _queries["refresh_payments"], {"payment_ids": sorted(set(payment_ids))}
    )


async def put_shipment(connection: Connection, new_id: str, message: ShipmentReported) -> None:
    await connection.execute(
        _queries["put_shipment"], {**msgspec.structs.asdict(message), "id": new_id}
    )


async def put_stock(connection: Connection, message: StockReported) -> None:
    await connection.execute(_queries["put_stock"], msgspec.structs.asdict(message))
