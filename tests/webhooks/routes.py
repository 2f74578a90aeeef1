"""The routes of the intake over sources of the tests' own, served by either server."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import anyio

from couponflow.kernel.client_address import ClientAddress
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, ServerName, serve
from couponflow.kernel.http_granian_fast import serve_fast
from couponflow.webhooks.adapters import AsgiAdapter, RsgiAdapter
from couponflow.webhooks.address_list import AddressList
from couponflow.webhooks.http import Limits, WebhookRoutes
from couponflow.webhooks.intake import Gate
from couponflow.webhooks.writer import EventWriter
from tests.kernel.http_clients import new_listener, request, serving
from tests.webhooks.deliveries import (
    EVENT_ID,
    SIGNATURE,
    IntakeParts,
    Shop,
    intake_parts,
    signature,
    writing,
)

BODY_BYTES = 2_048
PAGE = "https://pages.example"


@dataclass(frozen=True, slots=True)
class RoutesParts:
    """Routes to `/shop`, to `/net` (GET, too) and to `/api/webhook`, and what they are made of."""

    routes: WebhookRoutes
    intake: IntakeParts
    gates: Mapping[str, Gate]
    sources: Mapping[str, Shop]
    health: HealthBoard

    @property
    def shop(self) -> Shop:
        return self.sources["shop"]

    def outcomes(self, source: str = "shop") -> dict[str, float]:
        """What is counted of a source's requests."""
        return {
            sample.labels["outcome"]: sample.value
            for metric in self.intake.metrics.collect()
            for sample in metric.samples
            if sample.name == "couponflow_webhooks_total" and sample.labels["source"] == source
        }


def routes_parts(
    database: Database | None = None,
    *,
    writer: EventWriter | None = None,
    body_seconds: float = 10.0,
    concurrency: int = 64,
    store_seconds: float = 5.0,
    rate_per_second: float = 0,
    cors: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
    allowed: Sequence[str] = (),
) -> RoutesParts:
    """Without a database or a writer nothing can be written down."""
    intake = intake_parts(database, writer=writer, store_seconds=store_seconds)
    sources = {
        "shop": intake.source,
        "net": Shop("net", ("GET", "POST")),
        "api/webhook": Shop("queue"),
    }
    gates = {
        path: Gate(source, AddressList(allowed), rate_per_second, intake.clock, concurrency)
        for path, source in sources.items()
    }
    health = HealthBoard(intake.clock)
    routes = WebhookRoutes(
        gates,
        intake.intake,
        limits=Limits(BODY_BYTES, body_seconds),
        cors={"api/webhook": cors},
        client_address=ClientAddress(trusted_proxies),
        metrics=intake.metrics,
        health=health,
        required=("role:webhooks",),
        clock=intake.clock,
    )
    return RoutesParts(routes, intake, gates, sources, health)


@asynccontextmanager
async def served(server: ServerName, parts: RoutesParts) -> AsyncIterator[Listener]:
    """Requests are answered, and events written, during the block."""
    listener = new_listener(server)
    adapter = RsgiAdapter(parts.routes, SystemClock())
    if server == "granian":
        serve_routes = partial(serve_fast, adapter)
    else:
        serve_routes = partial(serve, AsgiAdapter(parts.routes))
    async with writing(parts.intake.writer), giving_up(adapter), serving(serve_routes, listener):
        yield listener


@asynccontextmanager
async def giving_up(adapter: RsgiAdapter) -> AsyncIterator[None]:
    """Bodies that are late are given up during the block."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(adapter.give_up_late)
        yield
        tasks.cancel_scope.cancel()


def post(
    target: str = "/shop",
    body: bytes = b"ann",
    *headers: str,
    event_id: str = "",
    signed: str | None = None,
    length: int | None = None,
    method: str = "POST",
) -> bytes:
    """A signed delivery; `length` is what it says of its body's length."""
    lines = [
        f"{SIGNATURE}: {signature(body) if signed is None else signed}",
        f"content-length: {len(body) if length is None else length}",
        *([f"{EVENT_ID}: {event_id}"] if event_id else []),
        *headers,
    ]
    return request(target, *lines, method=method) + body


def post_chunks(*chunks: bytes, target: str = "/shop", ended: bool = True) -> bytes:
    """A signed delivery that does not say how long it is."""
    head = request(
        target,
        f"{SIGNATURE}: {signature(b''.join(chunks))}",
        "transfer-encoding: chunked",
        method="POST",
    )
    pieces = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    return b"".join([head, *pieces, *([b"0\r\n\r\n"] if ended else [])])
