"""What senders told us over HTTP, for admins: looking at it, and sending it on its way again."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Annotated, get_args

import msgspec
import structlog
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from couponflow.kernel.api import (
    ProblemError,
    actor_of,
    invalid_body,
    invalid_query,
    json_response,
    read_body,
    read_query,
    require_role,
)
from couponflow.kernel.clock import Clock
from couponflow.kernel.cursors import CursorInvalid
from couponflow.kernel.database import Connection, Database
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.moments import parse_moment
from couponflow.messages import CHANNELS, MessageTypes
from couponflow.webhooks.contract import Source
from couponflow.webhooks.event_filter import (
    ALL_REPLAYABLE,
    EventFilter,
    EventStatus,
    FilterInvalid,
    quoted,
    source_unknown,
)
from couponflow.webhooks.log_reading import (
    EventCounts,
    count_events,
    events_named,
    is_source_logged,
    list_events,
)
from couponflow.webhooks.replay import EventReplayReport, replay_events
from couponflow.webhooks.showing import ShownEvent, reveal_event, show_event

EVENTS_A_REQUEST = 10_000
"""Events looked at by one request; the answer says where another goes on."""
_PAGE_DEFAULT = 50
_PAGE_MAX = 500
_IDS_MAX = 1_000
_NAMED_MAX = 10
_log = structlog.get_logger("couponflow.webhooks")


class FilterBody(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Which events are meant: those that agree with all that is given."""

    source: str | None = None
    type: str | None = None
    event_id: str | None = None
    """What its sender calls it."""
    status: str | None = None
    """An `EventStatus`."""
    since: str | None = None
    """A moment (UTC where it does not say), or `2h`: so long ago."""
    until: str | None = None
    text: str | None = None
    """Somewhere in the body or the query string."""

    def event_filter(self, ids: tuple[str, ...] | None, clock: Clock) -> EventFilter:
        """Raises `FilterInvalid`."""
        return EventFilter(
            source=self.source,
            event_type=self.type,
            event_id=self.event_id,
            status=_status(self.status),
            since=_moment("since", self.since, clock),
            until=_moment("until", self.until, clock),
            text=self.text,
            ids=ids,
        ).checked()


def _status(text: str | None) -> EventStatus | None:
    try:
        return msgspec.convert(text, EventStatus | None)
    except msgspec.ValidationError as error:
        statuses = ", ".join(get_args(EventStatus))
        raise FilterInvalid("status", f"{quoted(text or '')} is none of {statuses}") from error


def _moment(part: str, text: str | None, clock: Clock) -> datetime | None:
    try:
        return None if text is None else parse_moment(text, clock)
    except ValueError as error:
        raise FilterInvalid(part, str(error)) from error


class Selected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to replay: ids, a filter, both, or all verified events there are."""

    ids: Annotated[tuple[str, ...], Meta(min_length=1, max_length=_IDS_MAX)] | None = None
    filter: FilterBody | None = None
    all: bool = False
    expected: Annotated[int, Meta(ge=0)] | None = None
    """The number that somebody agreed to; no more events than that are touched."""
    after: str | None = None
    """The `next_cursor` of the replay before, to go on where it ended."""
    dry_run: bool = False


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What would be looked at; nothing was changed."""

    dry_run: bool = True
    matching: EventCounts


class _ListQuery(FilterBody, frozen=True, kw_only=True, omit_defaults=True):
    id: tuple[str, ...] | None = None
    limit: Annotated[int, Meta(ge=1, le=_PAGE_MAX)] = _PAGE_DEFAULT
    cursor: str | None = None


class _ShowQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reveal: bool = False


def webhook_routes(
    database: Database,
    clock: Clock,
    ids: Uuid7Generator,
    sources: Mapping[str, Source],
    known_channels: Mapping[str, MessageTypes] = CHANNELS,
) -> list[Route]:
    """The routes, each behind the role `admin`: they show what shoppers are called."""
    guard = require_role("admin")
    routes = _Routes(database, clock, ids, sources, known_channels)

    def route(path: str, method: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(f"/api/v1/webhooks{path}", guard(endpoint), methods=[method])

    return [
        route("", "GET", routes.list),
        route("/replay", "POST", routes.replay),
        route("/{id}", "GET", routes.show),
    ]


class _Routes:
    """The endpoints."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        ids: Uuid7Generator,
        sources: Mapping[str, Source],
        known_channels: Mapping[str, MessageTypes],
    ) -> None:
        self._database = database
        self._clock = clock
        self._ids = ids
        self._sources = sources
        self._known_channels = known_channels

    async def list(self, request: Request) -> Response:
        query = read_query(request.query_params, _ListQuery)
        async with self._database.connection() as connection:
            try:
                event_filter = query.event_filter(query.id, self._clock)
                await self._require_source(connection, event_filter)
                page = await list_events(connection, event_filter, query.limit, query.cursor)
            except (FilterInvalid, CursorInvalid) as error:
                raise invalid_query(str(error)) from error
        return json_response(200, page)

    async def show(self, request: Request) -> Response:
        name: str = request.path_params["id"]
        reveal = read_query(request.query_params, _ShowQuery).reveal
        async with self._database.connection() as connection:
            named = await events_named(connection, name, _NAMED_MAX)
        if len(named) > 1:
            ids = ", ".join(event.id for event in named)
            raise ProblemError(
                409, "ambiguous-webhook", "Several webhooks", f"senders call several so: {ids}"
            )
        event = await self._shown(named[0].id, request, reveal=reveal) if named else None
        if event is None:
            raise ProblemError(
                404,
                "unknown-webhook",
                "Unknown webhook",
                "no event has this id, nor did a sender call any so",
            )
        return json_response(200, event)

    async def _shown(self, webhook_id: str, request: Request, *, reveal: bool) -> ShownEvent | None:
        if reveal:
            return await reveal_event(
                self._database,
                self._sources,
                webhook_id,
                actor=actor_of(request),
                clock=self._clock,
                ids=self._ids,
            )
        async with self._database.connection() as connection:
            return await show_event(connection, self._sources, webhook_id)

    async def replay(self, request: Request) -> Response:
        selected = await read_body(request, Selected)
        try:
            event_filter = _selection(selected, self._clock)
            async with self._database.connection() as connection:
                await self._require_source(connection, event_filter)
                if selected.dry_run:
                    matching = await count_events(connection, event_filter, selected.after)
                    return json_response(200, DryRun(matching=matching))
            report = await self._replay(event_filter, selected, actor_of(request))
        except FilterInvalid as error:
            path = "$.ids" if error.part == "ids" else f"$.filter.{error.part}"
            raise invalid_body(str(error), path=path) from error
        except CursorInvalid as error:
            raise invalid_body(str(error), path="$.after") from error
        return json_response(200, report)

    async def _replay(
        self, event_filter: EventFilter, selected: Selected, actor: str
    ) -> EventReplayReport:
        report = await replay_events(
            self._database,
            event_filter,
            actor=actor,
            channels_known=self._known_channels,
            clock=self._clock,
            ids=self._ids,
            limit=EVENTS_A_REQUEST,
            expected=selected.expected,
            cursor=selected.after,
        )
        _log.info(
            "webhooks_replayed",
            actor=actor,
            replayed=report.replayed,
            refused=report.refused,
            skipped=report.skipped,
        )
        return report

    async def _require_source(self, connection: Connection, event_filter: EventFilter) -> None:
        """Raises `FilterInvalid` for a source that there is not and never was."""
        source = event_filter.source
        if source is None or source in self._sources:
            return
        if not await is_source_logged(connection, source):
            raise source_unknown(source, self._sources)


def _selection(selected: Selected, clock: Clock) -> EventFilter:
    """The events that a body means; one that means none or says two things is refused.

    Raises `FilterInvalid`.
    """
    filtered = selected.filter is not None and selected.filter != FilterBody()
    narrowed = filtered or selected.ids is not None
    if narrowed == selected.all:
        raise invalid_body(
            "give ids, a filter that names something, or both; or all alone", path="$"
        )
    if selected.all:
        return ALL_REPLAYABLE
    return (selected.filter or FilterBody()).event_filter(selected.ids, clock).for_replay()
