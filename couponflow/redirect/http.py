"""The routes of the redirector's port, for any server; `adapters.py` ties them to one."""

import hmac
from time import perf_counter
from typing import assert_never

import msgspec
import structlog

from couponflow.kernel.answers import Answer, json_answer, problem_answer
from couponflow.kernel.client_address import Headers
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import DatabaseAway
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.journal import Journal, JournalFull
from couponflow.messages import Click
from couponflow.redirect.answers import (
    redirect_headers,
    refusal_answer,
)
from couponflow.redirect.catalogue_mirror import CHECK as CATALOGUE
from couponflow.redirect.metrics import RedirectMetrics
from couponflow.redirect.resolver import Detour, Redirect, Refusal, Resolver
from couponflow.redirect.stats import StatsReader

PREFIX = "/out/"
_METHODS = ("GET", "HEAD")
REMIND_SECONDS = 60.0
"""How often the log repeats that clicks are not being recorded."""
_ROBOTS = b"User-agent: *\nDisallow: /out/\n"
_log = structlog.get_logger("couponflow.redirect")
_encode = msgspec.json.Encoder().encode


class RedirectRoutes:
    """Answers requests: tracked links at once, everything else on the event loop."""

    def __init__(
        self,
        resolver: Resolver,
        journal: Journal,
        metrics: RedirectMetrics,
        stats: StatsReader,
        stats_token: str,
        health: HealthBoard,
        clock: Clock,
    ) -> None:
        self._resolver = resolver
        self._journal = journal
        self._metrics = metrics
        self._stats = stats
        self._stats_token = stats_token
        self._health = health
        self._unrecorded = _UnrecordedIncident(clock)

    def follow(self, method: str, path: str, peer: str, headers: Headers) -> Answer:
        """Answer a request for a path that begins with `PREFIX`; never waits, never raises."""
        started = perf_counter()
        try:
            answer = self._follow(method, path, peer, headers)
        except Exception:  # noqa: BLE001 - the last wall between a fault of ours and a shopper
            _log.exception("redirect failed")
            self._metrics.count("error")
            answer = problem_answer(500, "internal", "Something went wrong on our side", "")
        self._metrics.seconds.observe(perf_counter() - started)
        return answer

    def _follow(self, method: str, path: str, peer: str, headers: Headers) -> Answer:
        metrics = self._metrics
        if method not in _METHODS:
            metrics.count("method-not-allowed")
            return problem_answer(
                405, "method-not-allowed", "Use GET", "", ("allow", ", ".join(_METHODS))
            )
        resolution = self._resolver.resolve(method, path, peer, headers)
        if isinstance(resolution, Redirect):
            self._record(resolution.click)
            metrics.outcomes["redirected"] += 1
            metrics.verdicts[resolution.click.verdict] += 1
            return Answer(302, redirect_headers(resolution))
        if isinstance(resolution, Detour):
            metrics.count("ended")
            return Answer(302, redirect_headers(resolution))
        if isinstance(resolution, Refusal):
            metrics.count(resolution.reason)
            answer = refusal_answer(resolution, headers)
            return answer if method == "GET" else msgspec.structs.replace(answer, body=b"")
        assert_never(resolution)

    def _record(self, click: Click) -> None:
        """Append to the journal; a shopper is redirected even when there is no room left."""
        try:
            self._journal.append(_encode(click))
        except JournalFull as error:
            self._metrics.unrecorded += 1
            self._unrecorded.add(error)
        else:
            if self._unrecorded.clicks:
                self._unrecorded.end()

    async def answer(self, method: str, path: str, headers: Headers) -> Answer:
        """Answer a request for any other path; never raises."""
        if method not in _METHODS:
            return problem_answer(
                405, "method-not-allowed", "Use GET", "", ("allow", ", ".join(_METHODS))
            )
        match path:
            case "/health":
                return json_answer(200, {"status": "alive"})
            case "/ready":
                health = self._health.snapshot({"role:redirect", CATALOGUE})
                return json_answer(503 if health.status == "not_ready" else 200, health)
            case "/stats":
                return await self._answer_stats(headers)
            case "/robots.txt":
                return Answer(200, [("content-type", "text/plain; charset=utf-8")], _ROBOTS)
            case _:
                return problem_answer(
                    404, "not-found", "Nothing is here", "Tracked links begin with /out/."
                )

    async def _answer_stats(self, headers: Headers) -> Answer:
        if self._stats_token:
            given = (headers.get("authorization") or "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._stats_token.encode()):
                return problem_answer(
                    401,
                    "unauthorized",
                    "A token is needed",
                    "Send the value of [redirect] stats_token as: Authorization: Bearer <token>",
                    ("www-authenticate", "Bearer"),
                )
        try:
            return json_answer(200, await self._stats.read())
        except DatabaseAway as error:
            return problem_answer(
                503, "database-away", "Statistics are away", str(error), ("retry-after", "5")
            )


class _UnrecordedIncident:
    """Clicks that were not recorded, one after another; told when it begins, lasts and ends."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._told_at = 0.0
        self.clicks = 0

    def add(self, error: JournalFull) -> None:
        self.clicks += 1
        now = self._clock.monotonic()
        if self.clicks == 1 or now - self._told_at >= REMIND_SECONDS:
            self._told_at = now
            _log.error("clicks are not being recorded", clicks=self.clicks, error=str(error))

    def end(self) -> None:
        _log.warning("clicks are recorded again", clicks_unrecorded=self.clicks)
        self.clicks = 0
