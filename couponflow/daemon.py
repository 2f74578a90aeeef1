"""The wiring: opens what the roles need, builds the roles, and runs them to the end.

The only module that knows every role. Adding a capability means adding a folder and a few lines
here.
"""

import contextlib
import gc
import os
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import anyio
import msgspec
import structlog

from couponflow.admin.dead_letters_http import dead_letter_routes
from couponflow.admin.http import AdminParts, admin_routes
from couponflow.admin.role import ApiParts, api_role
from couponflow.catalogue.store import load_sample
from couponflow.clicks.role import ClicksParts, clicks_role
from couponflow.config import Settings
from couponflow.config_rules import parse_bind
from couponflow.kernel.channel import Channel
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.database import Database
from couponflow.kernel.embedded_postgres import STOP_SECONDS, embedded_postgres
from couponflow.kernel.health import HealthBoard
from couponflow.kernel.http import Listener, ServerName, free_port, require_available
from couponflow.kernel.identifiers import Uuid7Generator
from couponflow.kernel.journal import Journal, open_journal
from couponflow.kernel.message_metrics import MessageMetrics
from couponflow.kernel.ops import Queues, RoleMetrics
from couponflow.kernel.ops_role import DATABASE_CHECK, OpsParts, ops_role
from couponflow.kernel.postgres import open_current_postgres
from couponflow.kernel.role import Role, Stage
from couponflow.kernel.shutdown import stop_on_signals
from couponflow.kernel.supervisor import Supervisor
from couponflow.kernel.telemetry import MetricSource, add_source, new_registry
from couponflow.kernel.tokens import open_tokens
from couponflow.message_wiring import Messaging, MessagingParts
from couponflow.messages import CHANNELS, Click
from couponflow.redirect import audit as redirect_audit
from couponflow.redirect.metrics import RedirectMetrics
from couponflow.redirect.role import RedirectParts, redirect_role
from couponflow.sandbox.senders.keys import SenderKeys
from couponflow.sandbox_wiring import sandbox_roles
from couponflow.webhooks.admin_http import webhook_routes
from couponflow.webhooks.metrics import WebhookMetrics
from couponflow.webhooks.role import WebhooksParts, webhooks_role
from couponflow.worker_wiring import Senders, worker_roles

_log = structlog.get_logger("couponflow.daemon")

SWITCH_INTERVAL_SECONDS = 0.0005
"""How long the event loop may keep the interpreter from granian's thread, which brings requests;
with the default of 5 ms the slowest percent of redirects take twice as long."""
GC_THRESHOLD = 7_000
"""New containers after which the collector looks at them; Python's own is 700."""
WAIT_FOR_DATABASE_SECONDS = 60.0
REQUIRED_CHECKS = ("role:", DATABASE_CHECK)
"""What must be well for a daemon to be ready."""
ROLES_SHARE_OF_DEADLINE = 0.8
"""The rest of the shutdown's time is for closing what the roles stood on."""
CLOSE_SECONDS_MIN = 1.0
"""What the embedded PostgreSQL gets to stop even when the roles have used up the deadline."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line adds to the settings."""

    roles: tuple[str, ...]
    demo: bool = False
    traffic: bool = False
    sender_keys: SenderKeys | None = None
    """What the demo's providers sign with."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a person wants to know once every role is up."""

    roles: tuple[str, ...]
    redirect_url: str | None
    api_url: str | None
    webhooks_url: str | None
    ops_url: str
    sandbox_url: str | None
    database: str


async def run_daemon(
    settings: Settings, options: RunOptions, on_running: Callable[[Running], None]
) -> None:
    """Run until a signal, and return when everything is closed.

    A signal during the start ends the start. From the signal on it takes the shutdown's deadline.
    Raises `PortUnavailable`, `JournalLocked`, `DatabaseAway`, `EmbeddedPostgresFailed`,
    `TokenKeyBroken` and the errors of migrations, before anything is served; the text of each is
    for the operator.
    """
    _tune_interpreter()
    daemon = _Daemon(settings, options)
    daemon.require_ports()
    settings.var_path.mkdir(parents=True, exist_ok=True)
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        await tasks.start(partial(stop_on_signals, stop))
        # Around the stack, for what is opened in a scope must be closed in it.
        with anyio.CancelScope() as opening:
            tasks.start_soon(daemon.heed, stop, opening)
            async with contextlib.AsyncExitStack() as stack:
                await daemon.open(stack)
                if not stop.is_set():
                    await daemon.run(stop, on_running)
        if opening.cancelled_caught:
            _log.info("stopped while starting")
        tasks.cancel_scope.cancel()


def _tune_interpreter() -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    # What is imported by now stays for good: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # What a request makes is gone with its answer: to look at it ten times as seldom is enough.
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])


class _Daemon:
    """Everything one process holds open."""

    def __init__(self, settings: Settings, options: RunOptions) -> None:
        self._settings = settings
        self._options = options
        self._clock = SystemClock()
        self._health = HealthBoard(self._clock)
        self._ids = Uuid7Generator()
        self._queues = Queues()
        self._role_metrics = RoleMetrics()
        self._messages = MessageMetrics()
        self._sources: list[MetricSource] = [self._queues, self._role_metrics, self._messages]
        self._registry = new_registry()
        self._roles: list[Role] = []
        self._senders = Senders(settings)
        self._messaging: Messaging | None = None
        self._listeners = self._make_listeners()
        self._journal_folder = settings.var_path / redirect_audit.JOURNAL_FOLDER
        self._opened = False
        self._closed_by: float | None = None

    def _make_listeners(self) -> dict[str, Listener]:
        def listener(bind: str, server: ServerName, max_connections: int) -> Listener:
            host, port = parse_bind(bind)
            return Listener(host, port or free_port(host), server, max_connections)

        settings = self._settings
        made = {"ops": listener(settings.ops.bind, settings.ops.server, 64)}
        if "redirect" in self._options.roles:
            redirect = settings.redirect
            made["redirect"] = listener(redirect.bind, redirect.server, redirect.max_connections)
        if "webhooks" in self._options.roles:
            webhooks = settings.webhooks
            made["webhooks"] = listener(webhooks.bind, webhooks.server, webhooks.max_connections)
        if "api" in self._options.roles:
            made["api"] = listener(settings.api.bind, settings.api.server, 1024)
        if self._options.demo:
            made["sandbox"] = listener(settings.sandbox.bind, "hypercorn", 256)
        return made

    def require_ports(self) -> None:
        for listener in self._listeners.values():
            # Two daemons on one port must at least have one database: else each sees half.
            require_available(listener, shared=bool(self._settings.database.url))

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Open what the roles need, and build them."""
        settings = self._settings
        journal = None
        if "redirect" in self._options.roles:
            # Before PostgreSQL: a second daemon on this var folder is told so at once.
            journal = stack.enter_context(
                open_journal(self._journal_folder, settings.journal, self._clock)
            )
        database = await self._open_database(stack)
        messaging = await self._open_messaging(stack, database)
        if journal is not None:
            self._add_redirect(journal, database, messaging)
        if "clicks" in self._options.roles:
            self._add_clicks(database, messaging)
        if "webhooks" in self._options.roles:
            self._add_webhooks(database)
        self._roles += worker_roles(self._options.roles, settings, messaging, self._senders)
        if "api" in self._options.roles:
            self._add_api(database, messaging)
        if self._options.demo:
            await load_sample(database, self._listeners["sandbox"].local_url)
            self._roles += sandbox_roles(
                settings,
                self._listeners,
                self._clock,
                traffic=self._options.traffic,
                sender_keys=self._options.sender_keys,
            )
        self._add_ops(database)
        self._opened = True

    async def heed(self, stop: anyio.Event, opening: anyio.CancelScope) -> None:
        """Note when all must be over once `stop` is set, and give up an opening under way."""
        await stop.wait()
        self._closed_by = anyio.current_time() + self._settings.shutdown.deadline
        if not self._opened:
            opening.cancel()

    def _close_seconds(self) -> float:
        """What is left until all must be over; the server's own time when nobody is waiting."""
        if self._closed_by is None:
            return STOP_SECONDS
        return max(CLOSE_SECONDS_MIN, self._closed_by - anyio.current_time())

    async def _open_database(self, stack: contextlib.AsyncExitStack) -> Database:
        settings = self._settings
        if not settings.database.url:
            url = await stack.enter_async_context(
                embedded_postgres(settings.var_path / "postgres", stop_seconds=self._close_seconds)
            )
            replaced = msgspec.structs.replace(settings.database, url=url)
            settings = msgspec.structs.replace(settings, database=replaced)
        return await stack.enter_async_context(
            open_current_postgres(settings, wait_seconds=WAIT_FOR_DATABASE_SECONDS)
        )

    async def _open_messaging(
        self, stack: contextlib.AsyncExitStack, database: Database
    ) -> Messaging:
        redis = None
        if self._settings.redis.url:
            # Here and not above: coredis takes most of a second to import.
            from couponflow.kernel.redis_wiring import open_redis_wiring

            redis = await stack.enter_async_context(
                open_redis_wiring(self._settings, database, self._clock, self._health)
            )
        messaging = Messaging(
            MessagingParts(
                settings=self._settings,
                roles=self._options.roles,
                database=database,
                health=self._health,
                messages=self._messages,
                clock=self._clock,
                redis=redis,
            )
        )
        await messaging.open(stack)
        self._queues.channels = messaging.channels()
        self._roles += messaging.roles()
        self._sources += messaging.sources()
        self._messaging = messaging
        return messaging

    def _add_redirect(self, journal: Journal, database: Database, messaging: Messaging) -> None:
        settings = self._settings
        metrics = RedirectMetrics(journal)
        self._sources.append(metrics)
        parts = RedirectParts(
            settings=settings.redirect,
            fsync_seconds=settings.journal.fsync_seconds,
            trusted_proxies=settings.http.trusted_proxies,
            listener=self._listeners["redirect"],
            journal=journal,
            journal_folder=self._journal_folder,
            channel=_opened(messaging.clicks),
            database=database,
            health=self._health,
            metrics=metrics,
            clock=self._clock,
            shared=messaging.shared_state,
        )
        self._roles.append(redirect_role(parts))

    def _add_clicks(self, database: Database, messaging: Messaging) -> None:
        parts = ClicksParts(
            settings=self._settings.clicks,
            consumer=f"{socket.gethostname()}-{os.getpid()}",
            channel=_opened(messaging.clicks),
            controls=messaging.controls,
            database=database,
            health=self._health,
            metrics=self._messages.channel(Click.channel),
            clock=self._clock,
        )
        self._roles.append(clicks_role(parts))

    def _add_webhooks(self, database: Database) -> None:
        metrics = WebhookMetrics()
        self._sources.append(metrics)
        parts = WebhooksParts(
            settings=self._settings.webhooks,
            sources=self._senders.by_path,
            source_settings=self._senders.settings,
            cors=self._senders.cors,
            trusted_proxies=self._settings.http.trusted_proxies,
            listener=self._listeners["webhooks"],
            database=database,
            database_connections=self._settings.database.pool_max,
            health=self._health,
            metrics=metrics,
            clock=self._clock,
        )
        self._roles.append(webhooks_role(parts))

    def _add_api(self, database: Database, messaging: Messaging) -> None:
        admin = AdminParts(
            database=database,
            queues=self._queues,
            shared_state=messaging.shared_state,
            consumers=self._messages.consumers,
        )
        parts = ApiParts(
            listener=self._listeners["api"],
            routes=[
                *admin_routes(admin),
                *dead_letter_routes(database, self._clock, self._ids, CHANNELS),
                *webhook_routes(database, self._clock, self._ids, self._senders.by_name),
            ],
            registry=self._registry,
            health=self._health,
            required=REQUIRED_CHECKS,
            queues=self._queues,
            tokens=open_tokens(self._settings, self._clock),
            clock=self._clock,
            make_id=lambda: self._ids.make(self._clock.now()),
        )
        self._roles.append(api_role(parts))

    def _add_ops(self, database: Database) -> None:
        for source in self._sources:
            add_source(self._registry, source)
        parts = OpsParts(
            listener=self._listeners["ops"],
            registry=self._registry,
            health=self._health,
            required=REQUIRED_CHECKS,
            queues=self._queues,
            depth_alarm=self._settings.channels.depth_alarm,
            database=database,
        )
        self._roles.append(ops_role(parts))

    async def run(self, stop: anyio.Event, on_running: Callable[[Running], None]) -> None:
        supervisor = Supervisor(
            self._roles,
            health=self._health,
            clock=self._clock,
            randomness=random.Random(),  # noqa: S311 - spreads restarts
            deadline_seconds=self._settings.shutdown.deadline * ROLES_SHARE_OF_DEADLINE,
            between_stages=self._seal_channels,
        )
        self._role_metrics.supervisor = supervisor
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._announce, supervisor, on_running)
            report = await supervisor.run(stop)
            tasks.cancel_scope.cancel()
        _log.info("stopped", seconds=round(report.seconds, 2), cut_off=list(report.cut_off))

    async def _seal_channels(self, ended: Stage) -> None:
        if ended is Stage.INTAKE and self._messaging is not None:
            self._messaging.seal()

    async def _announce(
        self, supervisor: Supervisor, on_running: Callable[[Running], None]
    ) -> None:
        await supervisor.all_running.wait()
        redirect, sandbox = self._listeners.get("redirect"), self._listeners.get("sandbox")
        api, webhooks = self._listeners.get("api"), self._listeners.get("webhooks")
        running = Running(
            roles=tuple(role.name for role in self._roles),
            redirect_url=redirect.local_url if redirect else None,
            api_url=api.local_url if api else None,
            webhooks_url=webhooks.local_url if webhooks else None,
            ops_url=self._listeners["ops"].local_url,
            sandbox_url=sandbox.local_url if sandbox else None,
            database="DATABASE_URL" if self._settings.database.url else "embedded PostgreSQL",
        )
        _log.info("running", roles=list(running.roles), redirect=running.redirect_url)
        on_running(running)


def _opened(channel: Channel[Click] | None) -> Channel[Click]:
    """The channel of clicks, which the roles that are tied to it have open."""
    if channel is None:
        raise AssertionError("no role here is tied to the channel of clicks")
    return channel
