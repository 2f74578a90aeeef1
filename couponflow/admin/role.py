"""The `api` role: the JSON API for operators and other programs."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from prometheus_client import CollectorRegistry
from starlette.routing import Route

from couponflow.kernel.api_app import ApiLimits, api_app
from couponflow.kernel.clock import Clock
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, serve
from couponflow.kernel.ops import Queues, ops_routes
from couponflow.kernel.role import Role, RoleHandle, Stage
from couponflow.kernel.tokens import TokenVerifier

NAME = "api"
GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ApiParts:
    """What the role is built from; opened by the daemon, which also closes it."""

    listener: Listener
    routes: Sequence[Route]
    """What the capabilities serve: `admin_routes(...)` and others like it."""
    registry: CollectorRegistry
    health: HealthBoard
    required: Collection[str]
    """The checks without which `/ready` says no."""
    queues: Queues
    tokens: TokenVerifier
    clock: Clock
    make_id: Callable[[], str]
    limits: ApiLimits = field(default_factory=ApiLimits)


def api_role(parts: ApiParts) -> Role:
    return Role(NAME, Stage.INTAKE, partial(_run, parts))


async def _run(parts: ApiParts, handle: RoleHandle) -> None:
    """Serve until told to stop, then let what is in flight finish."""
    app = api_app(
        [
            *ops_routes(parts.registry, parts.health, parts.required, parts.queues),
            *parts.routes,
        ],
        tokens=parts.tokens,
        clock=parts.clock,
        make_id=parts.make_id,
        limits=parts.limits,
    )
    await serve(
        app,
        parts.listener,
        stopping=handle.stopping,
        started=handle.started,
        grace_seconds=GRACE_SECONDS,
    )
