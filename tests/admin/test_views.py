"""What `/api/v1/queue/stats` and `/api/v1/health/workers` show."""

from collections.abc import Mapping
from datetime import datetime

import msgspec
import pytest

from couponflow.admin.http import AdminParts, QueueStats, admin_routes
from couponflow.admin.store import list_workers
from couponflow.admin.workers import Workers, read_workers
from couponflow.kernel.channel_memory import MemoryChannel
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.ops import Queues
from couponflow.kernel.outbox_rows import OutboxCounts
from couponflow.kernel.shared_state import Heartbeat, SharedStateAway
from couponflow.kernel.shared_state_memory import MemorySharedState
from couponflow.messages import CHANNELS, EmailRequested
from tests.kernel.api_client import SERVICE, app_with, client_of

EMAIL = EmailRequested(to="a@example.com", subject="s", text="t")
IDS = [f"01920000-0000-7000-8000-00000000000{number}" for number in range(10)]
WORKER_ROWS = b"""
insert into workers (id, name, roles, version, started_at, seen_at, lease_until, expired_at,
                     jobs_done, jobs_per_minute)
select id::uuid, name, '{email,sms}', '0.1.0', now() - interval '1 hour',
       now() - seen * interval '1 second', now() + lease * interval '1 second',
       case when expired then now() end, 7, 1.5
from (values (%s, 'lives', 1, 29, false), (%s, 'slow', 40, -10, false),
             (%s, 'ended', 45, 10, true), (%s, 'vanished', 301, -271, true))
     as w (id, name, seen, lease, expired)
"""
OUTBOX_ROWS = b"""
insert into outbox (id, channel, message, correlation_id, available_at, owner, stream_entry)
values (%s, 'emails', '{}', 'x', now() - interval '90 seconds', null, null),
       (%s, 'emails', '{}', 'x', now() + interval '1 hour', null, null),
       (%s, 'emails', '{}', 'x', now(), gen_random_uuid(), null),
       (%s, 'emails', '{}', 'x', now(), null, '1-1'),
       (%s, 'old', '{}', 'x', now() + interval '1 hour', null, null)
"""


class BrokenSharedState(MemorySharedState):
    """Redis is away."""

    async def heartbeats(self) -> list[Heartbeat]:
        raise SharedStateAway("no answer in 5 s")


async def execute(database: Database, query: bytes, parameters: list[str] | None = None) -> None:
    async with database.connection() as connection:
        await connection.execute(query, parameters)


async def asked(parts: AdminParts, path: str) -> bytes:
    async with client_of(app_with(admin_routes(parts))) as client:
        response = await client.get(path, headers=SERVICE)
    assert response.status_code == 200
    return response.content


async def test_a_channel_is_shown_with_all_that_is_known_of_it(database: Database) -> None:
    clock = ManualClock()
    channel: MemoryChannel[EmailRequested] = MemoryChannel("emails", 100, clock)
    await channel.publish([EMAIL, EMAIL, EMAIL])
    clock.advance(7)
    await execute(database, OUTBOX_ROWS, IDS[:5])
    await execute(database, b"insert into channel_controls values ('emails', true, 2.5, 3, 'x')")
    await execute(
        database, b"insert into dead_letters values (gen_random_uuid(), 'sms', 'a', '{}', 'x', 1)"
    )
    parts = AdminParts(database, Queues([channel]), consumers=lambda: {"emails": 2})
    async with channel.subscribe("test") as subscription:
        await subscription.receive(1, 0.0)
        encoded = await asked(parts, "/api/v1/queue/stats")
    channels = msgspec.json.decode(encoded, type=QueueStats).channels
    assert list(channels) == sorted({*CHANNELS, "old"})
    emails, sms, old = channels["emails"], channels["sms"], channels["old"]
    assert (emails.waiting, emails.in_flight, emails.oldest_seconds) == (2, 1, 7)
    assert (emails.capacity, emails.consumers, emails.dead_letters) == (100, 2, 0)
    assert (emails.paused, emails.rate_per_second, emails.concurrency) == (True, 2.5, 3)
    assert 90 <= emails.outbox.oldest_due_seconds < 120
    counts = msgspec.structs.replace(emails.outbox, oldest_due_seconds=0.0)
    assert counts == OutboxCounts(1, 1, 1, 1, 0.0)
    assert (sms.waiting, sms.consumers, sms.paused, sms.dead_letters) == (None, None, False, 1)
    assert old.outbox == OutboxCounts(0, 1, 0, 0, 0.0)


async def test_workers_are_alive_late_or_missing(database: Database) -> None:
    await execute(database, WORKER_ROWS, IDS[:4])
    encoded = await asked(AdminParts(database, Queues([])), "/api/v1/health/workers")
    answer = msgspec.json.decode(encoded, type=Workers)
    assert [(worker.name, worker.state) for worker in answer.workers] == [
        ("lives", "alive"),
        ("slow", "late"),
        ("ended", "late"),
        ("vanished", "missing"),
    ]
    first = answer.workers[0]
    assert (first.id, first.roles, first.version) == (IDS[0], ["email", "sms"], "0.1.0")
    assert (first.jobs_done, first.jobs_per_minute, first.heartbeat) == (7, 1.5, None)
    assert 1 <= first.seconds_since_seen < 30
    assert 3598 < (first.seen_at - first.started_at).total_seconds() < 3600
    assert (answer.heartbeats, answer.only_heartbeats) == ("no-redis", [])


async def test_times_are_in_rfc_3339(database: Database) -> None:
    await execute(database, WORKER_ROWS, IDS[:4])
    encoded = await asked(AdminParts(database, Queues([])), "/api/v1/health/workers")
    seen_at = msgspec.json.decode(encoded)["workers"][0]["seen_at"]
    assert seen_at.endswith("Z")
    assert datetime.fromisoformat(seen_at).utcoffset() is not None


async def test_heartbeats_stand_beside_their_workers(database: Database) -> None:
    await execute(database, WORKER_ROWS, IDS[:4])
    shared_state = MemorySharedState(ManualClock())
    said: Mapping[str, str] = {"roles": "email,sms"}
    for worker_id in (IDS[0], IDS[9]):
        await shared_state.beat(worker_id, said, lifetime_seconds=30)
    answer = await read_workers(database, shared_state)
    assert [worker.heartbeat for worker in answer.workers] == [said, None, None, None]
    assert answer.only_heartbeats == [Heartbeat(IDS[9], said)]
    assert answer.heartbeats == "read"


async def test_without_redis_postgresql_still_answers(database: Database) -> None:
    await execute(database, WORKER_ROWS, IDS[:4])
    answer = await read_workers(database, BrokenSharedState(ManualClock()))
    assert ([worker.name for worker in answer.workers], answer.heartbeats) == (
        ["lives", "slow", "ended", "vanished"],
        "redis-away",
    )


@pytest.mark.parametrize(("missing_seconds", "missing"), [(300.0, 1), (42.0, 2), (0.5, 4)])
async def test_when_a_worker_is_missing_is_given(
    database: Database, missing_seconds: float, missing: int
) -> None:
    await execute(database, WORKER_ROWS, IDS[:4])
    async with database.connection() as connection:
        workers = await list_workers(connection, missing_seconds)
    assert [worker.state for worker in workers].count("missing") == missing
