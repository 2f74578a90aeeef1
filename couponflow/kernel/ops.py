"""The operators' listener: health, readiness, metrics and queues of one daemon."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from couponflow.kernel.channel import ChannelStatistics
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.outbox_rows import OutboxCounts
from couponflow.kernel.problems import CONTENT_TYPE, Problem, problem_type
from couponflow.kernel.supervisor import State, Supervisor
from couponflow.messages import CHANNELS

MAX_BODY_BYTES = 65_536
NO_ROWS = OutboxCounts(due=0, later=0, leased=0, streamed=0, oldest_due_seconds=0.0)


class QueueState(msgspec.Struct, frozen=True):
    """A channel as this daemon sees it, and its dead letters in the database."""

    statistics: ChannelStatistics
    dead_letters: int


class Observed(Protocol):
    """The part of a channel that is looked at here, whatever it carries."""

    @property
    def name(self) -> str: ...

    async def statistics(self) -> ChannelStatistics: ...


class Queues:
    """This daemon's channels, sampled when somebody asks."""

    def __init__(self, channels: Sequence[Observed] = ()) -> None:
        self.channels = channels
        self.dead_letters: Mapping[str, int] = {}
        """By channel, as last counted in the database."""
        self.outbox: Mapping[str, OutboxCounts] = {}
        """Likewise."""
        self._latest: dict[str, QueueState] = {}

    def due(self, channel: str) -> int:
        """How many messages of a channel waited in the outbox when it was last looked at."""
        counts = self.outbox.get(channel)
        return counts.due if counts else 0

    async def sample(self) -> dict[str, QueueState]:
        self._latest = {
            channel.name: QueueState(
                await channel.statistics(), self.dead_letters.get(channel.name, 0)
            )
            for channel in self.channels
        }
        return self._latest

    def collect(self) -> Iterable[Metric]:
        depth = GaugeMetricFamily(
            "couponflow_queue_depth", "Messages waiting or being worked on.", labels=["channel"]
        )
        oldest = GaugeMetricFamily(
            "couponflow_queue_oldest_seconds",
            "Age of the oldest unfinished message: alert on this rather than on depth.",
            labels=["channel"],
        )
        dead = GaugeMetricFamily(
            "couponflow_dead_letters", "Messages that wait for an operator.", labels=["channel"]
        )
        for name, state in self._latest.items():
            depth.add_metric([name], state.statistics.depth + state.statistics.in_flight)
            oldest.add_metric([name], state.statistics.oldest_seconds)
        rows = GaugeMetricFamily(
            "couponflow_outbox_rows", "Messages in the outbox.", labels=["channel", "state"]
        )
        overdue = GaugeMetricFamily(
            "couponflow_outbox_oldest_due_seconds",
            "For how long the oldest message in the outbox has been due.",
            labels=["channel"],
        )
        for name, count in {**dict.fromkeys(self._latest, 0), **self.dead_letters}.items():
            dead.add_metric([name], count)
        for name, counts in {**dict.fromkeys(CHANNELS, NO_ROWS), **self.outbox}.items():
            rows.add_metric([name, "due"], counts.due)
            rows.add_metric([name, "later"], counts.later)
            rows.add_metric([name, "leased"], counts.leased)
            rows.add_metric([name, "streamed"], counts.streamed)
            overdue.add_metric([name], counts.oldest_due_seconds)
        return depth, oldest, dead, rows, overdue


class RoleMetrics:
    """Up or down, and restarts, by role."""

    def __init__(self) -> None:
        self.supervisor: Supervisor | None = None

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily(
            "couponflow_role_up", "1 while the role does its work.", labels=["role"]
        )
        restarts = CounterMetricFamily(
            "couponflow_role_restarts", "Restarts after a failure.", labels=["role"]
        )
        for name, status in self.supervisor.states().items() if self.supervisor else ():
            up.add_metric([name], status.state is State.RUNNING)
            restarts.add_metric([name], status.restarts)
        return up, restarts


def ops_routes(
    registry: CollectorRegistry, health: HealthBoard, required: Collection[str], queues: Queues
) -> list[Route]:
    """`/health`, `/ready` and `/metrics`; without the `required` checks this is not ready."""

    async def alive(request: Request) -> Response:
        return _json(200, {"status": "alive"})

    async def ready(request: Request) -> Response:
        snapshot = health.snapshot(required)
        return _json(503 if snapshot.status == "not_ready" else 200, snapshot)

    async def metrics(request: Request) -> Response:
        await queues.sample()
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return [Route("/health", alive), Route("/ready", ready), Route("/metrics", metrics)]


def ops_app(
    registry: CollectorRegistry, health: HealthBoard, required: Collection[str], queues: Queues
) -> Starlette:
    """The ASGI application; `required` are the checks without which this daemon is not ready."""

    async def queue_stats(request: Request) -> Response:
        return _json(200, {"channels": await queues.sample()})

    return Starlette(
        routes=[
            *ops_routes(registry, health, required, queues),
            Route("/api/v1/queue/stats", queue_stats),
        ],
        exception_handlers={HTTPException: _problem},
        max_body_size=MAX_BODY_BYTES,
    )


def _json(status: int, content: object) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    title = error.detail if isinstance(error, HTTPException) else "Internal Server Error"
    name = title.lower().replace(" ", "-")
    problem = Problem(problem_type(name), title, status)
    return Response(problem.encode(), status, media_type=CONTENT_TYPE)
