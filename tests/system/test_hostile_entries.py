"""What another program may put into a stream takes nobody down and loses nothing."""

from pathlib import Path

import pytest

from tests.redis_server import ask
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT, Sender, quiescent, streams_empty
from tests.system.waiting import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]

GOOD = '{"type":"email.v1","to":"a@mail.example","subject":"s","text":"t"}'
LATE = "999999999999"
HOSTILE: tuple[tuple[str, ...], ...] = (
    ("message", GOOD, "attempt", "999999999999999999"),
    ("message", GOOD, "handover", "999999999999999999"),
    ("message", GOOD, "published_at", LATE),
    ("message", GOOD, "published_at", "260000000000"),
    ("message", '{"type":"email.v1","to":"a@b","subject":"s","text":"\\u0000"}'),
    ("message", '{"type":"email.v1","to":"a@b","subject":"s","text":"t"}', "id", "no id"),
    ("message", '{"type":"email.v9"}'),
    ("text", "no message"),
)


async def test_every_hostile_entry_is_a_dead_letter_and_the_others_are_delivered(
    var: Path, empty_database: dict[str, str], redis_url: str
) -> None:
    environment = {**empty_database, **IMPATIENT, "REDIS_URL": redis_url}
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    async with DaemonProcess(
        var, roles="workers,api", demo=False, environment=environment
    ) as daemon:
        await daemon.start()
        for fields in HOSTILE:
            await ask(port, "XADD", "queue:emails", "*", *fields)
        sender = Sender(daemon.database_url)
        await sender.send(9)

        async def all_are_dead() -> bool:
            rows = await daemon.rows("select count(*) from dead_letters")
            return rows[0][0] == len(HOSTILE)

        await until(all_are_dead)
        await quiescent(daemon)
        told = {str(row[0]) for row in await daemon.rows("select id::text from notifications")}
        assert told == set(sender.message_ids)
        await streams_empty(daemon)
        metrics = await daemon.metrics()
        assert metrics['couponflow_role_restarts_total{role="email"}'] == 0

        async def all_are_counted() -> bool:
            counted = (await daemon.metrics())['couponflow_dead_letters{channel="emails"}']
            return counted == len(HOSTILE)

        await until(all_are_counted)
        listed = await daemon.command("dead-letters", "list", "--json")
        assert listed.code == 0, listed.err
        assert "role_failed" not in daemon.stderr
        await daemon.audit()


async def test_an_entry_only_a_newer_version_can_read_is_not_doubled(
    var: Path, empty_database: dict[str, str], redis_url: str
) -> None:
    """A daemon that cannot read it gives the row back, and buries nothing."""
    environment = {**empty_database, **IMPATIENT, "REDIS_URL": redis_url}
    async with DaemonProcess(
        var, roles="workers,api", demo=False, environment=environment
    ) as daemon:
        await daemon.start()
        await daemon.rows(
            "insert into outbox (id, channel, message, correlation_id) values"
            " (gen_random_uuid(), 'emails', '{\"type\":\"email.v2\"}', 'c')"
        )
        await daemon.rows("notify couponflow_outbox")

        async def is_put_off() -> bool:
            rows = await daemon.rows(
                "select 1 from outbox where available_at > now() + interval '10 seconds'"
                " and jsonb_array_length(errors) = 1 and owner is null"
            )
            return len(rows) == 1

        await until(is_put_off)
        assert list(await daemon.rows("select 1 from dead_letters")) == []
        await daemon.audit()
