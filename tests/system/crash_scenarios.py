"""How to come by each crash point: what is done to a daemon that is to die there, and afterwards.

A scenario lets the daemon die at its point, once for each of the visits, starts it again and checks
by the client's own log that everything happened once.
"""

import contextlib
import json
import random
import signal
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import msgspec
import psycopg

from couponflow.config import ApiSettings, Settings
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.crash_points import VARIABLE
from couponflow.kernel.tokens import mint
from couponflow.messages import EmailRequested
from tests.redis_server import ask
from tests.system.daemon_process import DaemonProcess
from tests.system.load import load, sample_paths
from tests.system.mail import Sender, a_message, quiescent, sending, streams_empty, told_once
from tests.system.providers import ROLES as WEBHOOKS
from tests.system.providers import Providers
from tests.system.raw_http import request_bytes, try_answer_to
from tests.system.waiting import POLL_SECONDS, until

MAIL = "email,sms"
DEADLY_SECONDS = 20.0
JWT_SECRET = "a secret of the tests, of 32 bytes or more"
LETTERS = 1_100
"""More than two batches of a replay."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a scenario plays, and at which visits of which point it is to be deadly."""

    folder: Path
    environment: Mapping[str, str]
    randomness: random.Random
    point: str
    visits: tuple[int, ...]

    def daemon(self, roles: str, *, name: str = "var", demo: bool = False) -> DaemonProcess:
        """A daemon that is not started yet, with a var folder of its own."""
        environment = {**self.environment, "COUPONFLOW_API_JWT_SECRET": JWT_SECRET}
        return DaemonProcess(self.folder / name, roles=roles, demo=demo, environment=environment)

    async def deaths(self, daemon: DaemonProcess) -> None:
        """Let the daemon die at the point, at each of the visits."""
        for visit in self.visits:
            await dies_at(daemon, self.point, visit)

    @property
    def redis_port(self) -> int:
        port = urlsplit(self.environment["REDIS_URL"]).port
        assert port is not None
        return port


Play = Callable[[Scene], Awaitable[None]]

ANY_CARRIER = ("memory", "redis")
STREAMS = ("redis",)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A way past a crash point, and over what."""

    play: Play
    carriers: tuple[str, ...] = ANY_CARRIER
    visits: tuple[int, ...] = (1, 3)


async def dies_at(daemon: DaemonProcess, point: str, visit: int = 1) -> None:
    """Start it, and return when the point has killed it; fails if it comes by too seldom."""
    daemon.environment[VARIABLE] = f"{point}:{visit}"
    try:
        await daemon.launch()
        with daemon.shown_on_failure(DEADLY_SECONDS):
            ended = await daemon.ended()
    finally:
        del daemon.environment[VARIABLE]
    assert ended.code == -signal.SIGKILL, daemon.stderr[-4000:]


async def exactly_these_told(daemon: DaemonProcess, message_ids: list[str]) -> None:
    """Return once all is quiet; fails unless each of these told somebody once, and nothing else."""
    await quiescent(daemon)
    await streams_empty(daemon)
    await told_once(daemon, message_ids)
    assert await count(daemon, "notifications") == len(set(message_ids)) == len(message_ids)


async def count(daemon: DaemonProcess, table: str) -> int:
    rows = await daemon.rows(f"select count(*) from {table}")
    return int(str(rows[0][0]))


async def mail(scene: Scene) -> None:
    """Messages are published all the while, as business transactions do."""
    sender = Sender(scene.environment["DATABASE_URL"])
    async with scene.daemon(MAIL) as daemon:
        async with sending(sender):
            await scene.deaths(daemon)
            await daemon.start()
        await exactly_these_told(daemon, sender.message_ids)
        await daemon.audit()


async def clicks(scene: Scene) -> None:
    """Shoppers click all the while."""
    async with scene.daemon("redirect,clicks", demo=True) as daemon:
        paths = sample_paths(scene.randomness)
        async with load(daemon.redirect_port, paths, connections=2) as log:
            await scene.deaths(daemon)
            await daemon.start()
        assert set(log.statuses) == {302}
        await daemon.stored(log.click_ids)
        await daemon.settled()
        await streams_empty(daemon)
        assert await count(daemon, "dead_letters") == 0
        await daemon.audit()


async def api(scene: Scene) -> None:
    """A program posts messages, each until it is told that it was accepted."""
    settings = Settings(api=ApiSettings(jwt_secret=JWT_SECRET))
    token = mint(settings, SystemClock(), role="service", subject="shop", hours=1)
    accepted: list[str] = []
    over = anyio.Event()
    async with scene.daemon("api,email,sms") as daemon:

        async def post_until_over() -> None:
            while not over.is_set():
                accepted.append(await _post(daemon.api_port, token, len(accepted)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post_until_over)
            await scene.deaths(daemon)
            await daemon.start()
            over.set()
        assert len(accepted) >= max(scene.visits)
        await exactly_these_told(daemon, accepted)
        await daemon.audit()


async def webhooks(scene: Scene) -> None:
    """All providers send, each until its event is acknowledged."""
    providers = Providers(scene.randomness, lives=12)
    scene = replace(scene, environment={**scene.environment, **providers.settings})
    async with scene.daemon(WEBHOOKS) as daemon:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(providers.send_all, daemon)
            await scene.deaths(daemon)
            await daemon.start()
        await providers.settled(daemon)
        await streams_empty(daemon)
        await daemon.audit()


async def webhooks_that_wait(scene: Scene) -> None:
    """All providers have sent before anybody works on it, so that much is worked on together."""
    providers = Providers(scene.randomness, lives=24)
    scene = replace(scene, environment={**scene.environment, **providers.settings})
    async with scene.daemon(WEBHOOKS) as daemon:
        assert (await daemon.command("queue", "pause", "webhooks")).code == 0
        await daemon.start()
        await providers.send_all(daemon)
        await daemon.kill()
        assert (await daemon.command("queue", "resume", "webhooks")).code == 0
        await scene.deaths(daemon)
        await daemon.start()
        await providers.settled(daemon)
        await streams_empty(daemon)
        await daemon.audit()


async def _post(port: int, token: str, number: int) -> str:
    """Send one message again and again until it is accepted; its id."""
    body = msgspec.json.encode(a_message(0))
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Idempotency-Key": f"order-{number}",
    }
    request = request_bytes("POST", "/api/v1/queue/emails", headers) + body
    while True:
        with contextlib.suppress(OSError):
            answer = await try_answer_to(port, request)
            if answer is not None:
                assert answer.status == 202, answer
                message_id: str = json.loads(answer.body)["message_id"]
                return message_id
        await anyio.sleep(POLL_SECONDS)


async def foreign_entries(scene: Scene) -> None:
    """Another program writes into the stream: messages, and what is none."""
    good = [await _xadd(scene, "message", _json(number)) for number in range(6)]
    ill_formed = [
        await _xadd(scene, "message", "{"),
        await _xadd(scene, "message", '{"type":"sms.v1","to":"+919800000000","text":"not here"}'),
        await _xadd(scene, "text", "hello"),
    ]
    async with scene.daemon(MAIL) as daemon:
        await scene.deaths(daemon)
        await daemon.start()
        await until(lambda: _has_rows(daemon, "dead_letters", len(ill_formed)))
        await until(lambda: _has_rows(daemon, "notifications", len(good)))
        await streams_empty(daemon)
        letters = await daemon.rows("select message_id from dead_letters order by message_id")
        assert [str(row[0]) for row in letters] == [f"entry {entry}" for entry in ill_formed]
        told = await daemon.rows("select body from notifications order by body")
        assert [str(row[0]) for row in told] == [f"{number}" for number in range(len(good))]
        await daemon.audit()


def _json(number: int) -> str:
    message = EmailRequested(to="reader@mail.example", subject="Hello", text=f"{number}")
    return msgspec.json.encode(message).decode()


async def _xadd(scene: Scene, *fields: str) -> str:
    """Write an entry; its id."""
    answer = await ask(scene.redis_port, "XADD", "queue:emails", "*", *fields)
    return answer.rpartition("\r\n")[2]


async def _has_rows(daemon: DaemonProcess, table: str, rows: int) -> bool:
    assert daemon.running, "it has exited"
    return await count(daemon, table) >= rows


async def dead_worker(scene: Scene) -> None:
    """A daemon dies while it works, and another one, elsewhere, dies while it takes over."""
    await _taken_over(scene, "handler.begun")


async def dead_consumer(scene: Scene) -> None:
    """A daemon dies with entries of the stream, and another one while it claims them."""
    await _taken_over(scene, "channel.received")


async def _taken_over(scene: Scene, first_death: str) -> None:
    sender = Sender(scene.environment["DATABASE_URL"])
    await sender.send(20)
    async with scene.daemon(MAIL, name="first") as first, scene.daemon(MAIL) as second:
        await dies_at(first, first_death)
        await scene.deaths(second)
        await second.start()
        await exactly_these_told(second, sender.message_ids)
        await second.audit()


async def forgetful_redis(scene: Scene) -> None:
    """The streams lose everything, again and again, before anybody has read it."""
    sender = Sender(scene.environment["DATABASE_URL"])
    await sender.send(20)
    async with scene.daemon("api", name="relay") as relay, scene.daemon(MAIL) as consumer:

        async def keep_forgetting() -> None:
            while True:
                await until(lambda: _all_streamed(relay, len(sender.message_ids)))
                await ask(scene.redis_port, "FLUSHALL")
                await anyio.sleep(POLL_SECONDS)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_forgetting)
            await scene.deaths(relay)
            tasks.cancel_scope.cancel()
        await relay.start()
        await consumer.start()
        await exactly_these_told(consumer, sender.message_ids)
        await consumer.audit()


async def _all_streamed(daemon: DaemonProcess, messages: int) -> bool:
    rows = await daemon.rows("select count(*) from outbox where stream_entry is not null")
    return rows[0][0] == messages


async def replay(scene: Scene) -> None:
    """An operator's replay dies, and is given again, while a daemon works on what it replayed."""
    message_ids = [str(uuid.UUID(int=scene.randomness.getrandbits(128))) for _ in range(LETTERS)]
    async with scene.daemon(MAIL) as daemon:
        await _bury(scene.environment["DATABASE_URL"], message_ids)
        await daemon.start()
        for visit in scene.visits:
            daemon.environment[VARIABLE] = f"{scene.point}:{visit}"
            result = await daemon.command("dead-letters", "replay", "--all", "--yes")
            assert result.code == -signal.SIGKILL, result
            del daemon.environment[VARIABLE]
            left = await count(daemon, "dead_letters")
            assert left == LETTERS - 500 * (visit - 1)
        result = await daemon.command("dead-letters", "replay", "--all", "--yes")
        assert result.code == 0, result
        await exactly_these_told(daemon, message_ids)
        assert await count(daemon, "audit_logs") == 3
        await daemon.audit()


async def _bury(database_url: str, message_ids: list[str]) -> None:
    connecting = psycopg.AsyncConnection.connect(database_url, autocommit=True)
    async with await connecting as connection:
        await connection.execute(
            "insert into dead_letters (id, channel, message_id, message, reason, attempts)"
            " select id, 'emails', id::text, %s::jsonb, 'the mail server refused it', 3"
            " from unnest(%s::uuid[]) as given (id)",
            [_json(0), message_ids],
        )


SCENARIOS: dict[str, Scenario] = {
    "outbox.published": Scenario(api),
    "outbox.claimed": Scenario(mail),
    "outbox.streamed": Scenario(mail, STREAMS),
    "outbox.recorded": Scenario(mail, STREAMS),
    "outbox.reset": Scenario(forgetful_redis, STREAMS),
    # The messages of one dead daemon are freed, and claimed, in one go.
    "outbox.lapsed": Scenario(dead_worker, visits=(1,)),
    "handler.begun": Scenario(mail),
    "handler.effect": Scenario(mail),
    "handler.committed": Scenario(mail),
    "handler.returned": Scenario(mail),
    # Whatever was claimed is tried alone after that.
    "together.effect": Scenario(webhooks_that_wait, visits=(1,)),
    "together.committed": Scenario(webhooks_that_wait, visits=(1,)),
    "handler.settled": Scenario(mail),
    "channel.published": Scenario(mail, STREAMS),
    "channel.received": Scenario(mail, STREAMS),
    "channel.claimed": Scenario(dead_consumer, STREAMS, visits=(1,)),
    "channel.acknowledged": Scenario(mail, STREAMS),
    "channel.malformed": Scenario(foreign_entries, STREAMS),
    # It is PostgreSQL's alone: what carries the messages afterwards makes no difference.
    "dead_letters.replayed": Scenario(replay, ("memory",)),
    "webhooks.verified": Scenario(webhooks),
    "webhooks.stored": Scenario(webhooks),
    "clicks.stored": Scenario(clicks),
    "clicks.handed_over": Scenario(clicks),
}
"""What comes by each crash point."""
