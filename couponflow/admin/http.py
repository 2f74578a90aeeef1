"""The routes through which operators and programs see and steer queues and workers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import structlog
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from couponflow.admin.store import submit
from couponflow.admin.submissions import (
    Submission,
    checked_key,
    decode_message,
    message_types_of,
    options_of,
)
from couponflow.admin.workers import read_workers
from couponflow.kernel.api import (
    ProblemError,
    actor_of,
    invalid_body,
    json_response,
    read_body,
    request_id_of,
    require_role,
)
from couponflow.kernel.controls import ChannelControl, ControlRefused, read_controls, set_control
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letters import count_by_channel as count_dead_letters
from couponflow.kernel.ops import NO_ROWS, Queues
from couponflow.kernel.outbox_rows import OutboxCounts, count_by_channel
from couponflow.kernel.shared_state import SharedState
from couponflow.messages import CHANNELS, MessageTypes

RATE_MAX = 1_000_000.0
CONCURRENCY_MAX = 100_000
_log = structlog.get_logger("couponflow.admin")


class ChannelStats(msgspec.Struct, frozen=True, kw_only=True):
    """One channel; what only its daemon can know is null where no role here is tied to it."""

    waiting: int | None
    in_flight: int | None
    oldest_seconds: float | None
    capacity: int | None
    consumers: int | None
    """Consumers of this daemon."""
    paused: bool
    rate_per_second: float | None
    concurrency: int | None
    dead_letters: int
    outbox: OutboxCounts


class QueueStats(msgspec.Struct, frozen=True):
    channels: dict[str, ChannelStats]


class ControlChanged(msgspec.Struct, frozen=True):
    """What holds for a channel from now on, in the whole installation."""

    channel: str
    paused: bool
    rate_per_second: float | None
    concurrency: int | None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """New limits of a channel; null takes one away, and one left out stays as it is."""

    rate_per_second: Annotated[float, Meta(gt=0, le=RATE_MAX)] | UnsetType | None = UNSET
    concurrency: Annotated[int, Meta(ge=1, le=CONCURRENCY_MAX)] | UnsetType | None = UNSET


def _nobody() -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the routes are built from; opened by the daemon, which also closes it."""

    database: Database
    queues: Queues
    shared_state: SharedState | None = None
    """Where workers' heartbeats are; None without Redis."""
    consumers: Callable[[], Mapping[str, int]] = _nobody
    """How many consumers this daemon has, by channel."""
    channels: Mapping[str, MessageTypes] = field(default_factory=lambda: CHANNELS)
    """What may be pushed."""


def admin_routes(parts: AdminParts) -> list[Route]:
    """The routes, each behind the roles `service` and `admin`."""
    guard = require_role("service", "admin")
    routes = _Routes(parts)

    def route(path: str, method: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(path, guard(endpoint), methods=[method])

    return [
        route("/api/v1/queue/stats", "GET", routes.stats),
        route("/api/v1/queue/{channel}/pause", "POST", routes.pause),
        route("/api/v1/queue/{channel}/resume", "POST", routes.resume),
        route("/api/v1/queue/{channel}/limits", "POST", routes.limits),
        route("/api/v1/queue/{channel}", "POST", routes.push),
        route("/api/v1/health/workers", "GET", routes.workers),
    ]


class _Routes:
    """The endpoints."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts

    async def stats(self, request: Request) -> Response:
        parts = self._parts
        sampled = await parts.queues.sample()
        async with parts.database.connection() as connection:
            dead = await count_dead_letters(connection)
            outbox = await count_by_channel(connection)
            controls = await read_controls(connection)
        consumers = parts.consumers()
        channels: dict[str, ChannelStats] = {}
        for name in sorted({*parts.channels, *sampled, *dead, *outbox, *controls}):
            numbers = sampled[name].statistics if name in sampled else None
            control = controls.get(name, ChannelControl())
            channels[name] = ChannelStats(
                waiting=numbers.depth if numbers else None,
                in_flight=numbers.in_flight if numbers else None,
                oldest_seconds=numbers.oldest_seconds if numbers else None,
                capacity=numbers.capacity if numbers else None,
                consumers=consumers.get(name),
                paused=control.paused,
                rate_per_second=control.rate_per_second,
                concurrency=control.concurrency,
                dead_letters=dead.get(name, 0),
                outbox=outbox.get(name, NO_ROWS),
            )
        return json_response(200, QueueStats(channels))

    async def push(self, request: Request) -> Response:
        channel = self._channel(request)
        options = options_of(request.query_params)
        key = _idempotency_key(request)
        submission = Submission(
            message=decode_message(await request.body(), self._parts.channels[channel]),
            options=options,
            actor=actor_of(request),
            correlation_id=request_id_of(request),
            idempotency_key=key,
        )
        submitted, repeated = await submit(self._parts.database, submission)
        _log.info(
            "message_pushed",
            channel=channel,
            message_id=submitted.message_id,
            repeated=repeated,
        )
        headers = {"idempotency-replayed": "true"} if repeated else None
        return json_response(202, submitted, headers)

    async def pause(self, request: Request) -> Response:
        return await self._control(request, paused=True)

    async def resume(self, request: Request) -> Response:
        return await self._control(request, paused=False)

    async def limits(self, request: Request) -> Response:
        limits = await read_body(request, Limits)
        if limits.rate_per_second is UNSET and limits.concurrency is UNSET:
            raise ProblemError(
                422,
                "invalid-body",
                "The body does not fit",
                "give rate_per_second, concurrency or both; null takes a limit away",
                path="$",
            )
        return await self._control(
            request, rate_per_second=limits.rate_per_second, concurrency=limits.concurrency
        )

    async def workers(self, request: Request) -> Response:
        return json_response(
            200, await read_workers(self._parts.database, self._parts.shared_state)
        )

    async def _control(
        self,
        request: Request,
        *,
        paused: bool | None = None,
        rate_per_second: float | UnsetType | None = UNSET,
        concurrency: int | UnsetType | None = UNSET,
    ) -> Response:
        channel = self._channel(request)
        try:
            async with self._parts.database.transaction() as connection:
                control = await set_control(
                    connection,
                    channel,
                    paused=paused,
                    rate_per_second=rate_per_second,
                    concurrency=concurrency,
                    actor=actor_of(request),
                )
        except ControlRefused as error:
            raise invalid_body(str(error)) from error
        return json_response(
            200,
            ControlChanged(channel, control.paused, control.rate_per_second, control.concurrency),
        )

    def _channel(self, request: Request) -> str:
        channel: str = request.path_params["channel"]
        message_types_of(channel, self._parts.channels)
        return channel


def _idempotency_key(request: Request) -> str | None:
    given = request.headers.getlist("idempotency-key")
    if len(given) > 1:
        raise ProblemError(
            422, "invalid-parameter", "A parameter is wrong", "Idempotency-Key is given twice"
        )
    return checked_key(given[0], "Idempotency-Key") if given else None
