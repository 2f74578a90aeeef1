"""Dead letters over HTTP: looking at them, sending them again, giving them up."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from couponflow.kernel.api import (
    ProblemError,
    actor_of,
    invalid_query,
    json_response,
    read_body,
    read_query,
    require_role,
)
from couponflow.kernel.clock import Clock
from couponflow.kernel.cursors import CursorInvalid
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letter_replay import discard, replay
from couponflow.kernel.dead_letters import (
    LetterCounts,
    LetterFilter,
    count_letters,
    list_letters,
    show_letter,
)
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.moments import Moment
from couponflow.messages import MessageTypes

LETTERS_A_REQUEST = 10_000
"""Letters replayed or discarded by one request; the answer says whether more match."""
_PAGE_DEFAULT = 50
_PAGE_MAX = 500
_IDS_MAX = 1_000
_log = structlog.get_logger("couponflow.admin")


class FilterBody(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """Which letters are meant: those that agree with all that is given."""

    channel: str | None = None
    type: str | None = None
    reason: str | None = None
    """A part of the reason, in whatever case."""
    correlation_id: str | None = None
    since: Moment | None = None
    until: Moment | None = None


class Selected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to replay or discard: ids, a filter, both, or all there are."""

    ids: Annotated[tuple[str, ...], Meta(min_length=1, max_length=_IDS_MAX)] | None = None
    """Ids of letters or of their messages."""
    filter: FilterBody | None = None
    all: bool = False
    expected: Annotated[int, Meta(ge=0)] | None = None
    """The number that somebody agreed to; no more letters than that are touched."""
    dry_run: bool = False


class _ListQuery(FilterBody, frozen=True, kw_only=True, omit_defaults=True):
    id: list[str] | None = None
    limit: Annotated[int, Meta(ge=1, le=_PAGE_MAX)] = _PAGE_DEFAULT
    cursor: str | None = None


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What would be touched; nothing was."""

    dry_run: bool = True
    matching: LetterCounts


def dead_letter_routes(
    database: Database,
    clock: Clock,
    ids: Uuid7Generator,
    known_channels: Mapping[str, MessageTypes],
) -> list[Route]:
    """The routes, each behind the roles `service` and `admin`."""
    guard = require_role("service", "admin")
    routes = _Routes(database, clock, ids, known_channels)

    def route(path: str, method: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
        return Route(f"/api/v1/dead-letters{path}", guard(endpoint), methods=[method])

    return [
        route("", "GET", routes.list),
        route("/replay", "POST", routes.replay),
        route("/discard", "POST", routes.discard),
        route("/{id}", "GET", routes.show),
        route("/{id}", "DELETE", routes.discard_one),
    ]


class _Routes:
    """The endpoints."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        ids: Uuid7Generator,
        known_channels: Mapping[str, MessageTypes],
    ) -> None:
        self._database = database
        self._clock = clock
        self._ids = ids
        self._known_channels = known_channels

    async def list(self, request: Request) -> Response:
        query = read_query(request.query_params, _ListQuery)
        letter_filter = _letter_filter(query, query.id)
        async with self._database.connection() as connection:
            try:
                page = await list_letters(connection, letter_filter, query.limit, query.cursor)
            except CursorInvalid as error:
                raise invalid_query(str(error)) from error
        return json_response(200, page)

    async def show(self, request: Request) -> Response:
        letter_id: str = request.path_params["id"]
        async with self._database.connection() as connection:
            letter = await show_letter(connection, letter_id)
        if letter is None:
            raise _unknown()
        return json_response(200, letter)

    async def replay(self, request: Request) -> Response:
        selected = await read_body(request, Selected)
        letter_filter = _selection(selected)
        if selected.dry_run:
            return await self._dry_run(letter_filter)
        actor = actor_of(request)
        report = await replay(
            self._database,
            letter_filter,
            actor=actor,
            channels_known=self._known_channels,
            clock=self._clock,
            ids=self._ids,
            limit=LETTERS_A_REQUEST,
            expected=selected.expected,
        )
        _log.info(
            "dead_letters_replayed",
            actor=actor,
            replayed=report.replayed,
            refused=report.refused,
            skipped=report.skipped,
        )
        return json_response(200, report)

    async def discard(self, request: Request) -> Response:
        selected = await read_body(request, Selected)
        letter_filter = _selection(selected)
        if selected.dry_run:
            return await self._dry_run(letter_filter)
        return await self._discard(request, letter_filter, selected.expected)

    async def discard_one(self, request: Request) -> Response:
        letter_id: str = request.path_params["id"]
        async with self._database.connection() as connection:
            letter = await show_letter(connection, letter_id)
        if letter is None:
            raise _unknown()
        return await self._discard(request, LetterFilter(ids=(letter.id,)), 1)

    async def _discard(
        self, request: Request, letter_filter: LetterFilter, expected: int | None
    ) -> Response:
        actor = actor_of(request)
        report = await discard(
            self._database,
            letter_filter,
            actor=actor,
            clock=self._clock,
            ids=self._ids,
            limit=LETTERS_A_REQUEST,
            expected=expected,
        )
        _log.info("dead_letters_discarded", actor=actor, discarded=report.discarded)
        return json_response(200, report)

    async def _dry_run(self, letter_filter: LetterFilter) -> Response:
        async with self._database.connection() as connection:
            matching = await count_letters(connection, letter_filter)
        return json_response(200, DryRun(matching=matching))


def _selection(selected: Selected) -> LetterFilter:
    """The letters that a body means; one that means none or says two things is refused."""
    filtered = selected.filter is not None and selected.filter != FilterBody()
    narrowed = filtered or selected.ids is not None
    if narrowed == selected.all:
        raise ProblemError(
            422,
            "invalid-body",
            "The body does not fit",
            "give ids, a filter that names something, or both; or all alone",
            path="$",
        )
    return _letter_filter(selected.filter or FilterBody(), selected.ids)


def _letter_filter(body: FilterBody, ids: "tuple[str, ...] | list[str] | None") -> LetterFilter:
    return LetterFilter(
        channel=body.channel,
        reason_contains=body.reason,
        message_type=body.type,
        correlation_id=body.correlation_id,
        since=body.since,
        until=body.until,
        ids=None if ids is None else tuple(ids),
    )


def _unknown() -> ProblemError:
    return ProblemError(
        404,
        "unknown-dead-letter",
        "Unknown dead letter",
        "no letter has this id, nor has its message; it may have been replayed or discarded",
    )
