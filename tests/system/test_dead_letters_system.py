"""Dead letters of a real daemon: found, looked at, sent again and given up, by hand and by HTTP."""

import uuid
from pathlib import Path

import msgspec
import psycopg
import pytest

from couponflow.kernel.outbox import NOTIFY_CHANNEL
from couponflow.kernel.outbox_rows import PUT_OFF_TIMES_MAX
from tests.redis_server import RedisServer, ask
from tests.system.api import caller
from tests.system.daemon_process import SETTLE_SECONDS, DaemonProcess
from tests.system.mail import IMPATIENT, quiescent
from tests.system.waiting import until

GOOD = '{"type":"email.v1","to":"reader@mail.example","subject":"Hello","text":"mended"}'

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]


class LetterShown(msgspec.Struct):
    id: str
    channel: str
    message_id: str
    reason: str
    attempts: int


class LettersShown(msgspec.Struct):
    items: list[LetterShown]


class Report(msgspec.Struct):
    replayed: int = 0
    refused: int = 0
    discarded: int = 0


class Acted(msgspec.Struct):
    dry_run: bool
    report: Report | None = None


async def letters(daemon: DaemonProcess, count: int) -> list[LetterShown]:
    """Return what `couponflow dead-letters list` shows once it is so many."""

    async def are_there() -> bool:
        return await daemon.rows("select count(*) from dead_letters") == [(count,)]

    with daemon.shown_on_failure(SETTLE_SECONDS):
        await until(are_there, seconds=SETTLE_SECONDS)
    result = await daemon.command("dead-letters", "list", "--json")
    assert result.code == 0, result.err
    listed = msgspec.json.decode(result.out, type=LettersShown)
    assert len(listed.items) == count
    return listed.items


async def act(daemon: DaemonProcess, *arguments: str) -> Acted:
    result = await daemon.command("dead-letters", *arguments, "--json")
    assert result.out, result.err
    return msgspec.json.decode(result.out, type=Acted)


async def write_unreadable_email(daemon: DaemonProcess, number: int) -> str:
    """Write what `publish` refuses; PostgreSQL's JSON keeps a NUL, its text does not.

    It was put off for a newer version so often that none is waited for any longer.
    """
    message = {"to": "reader@mail.example", "subject": "Hello", "text": f"un\0readable {number}"}
    put_off = {"attempt": 1, "at": 1_790_000_000.0, "worker": "another:1", "error": "unreadable"}
    message_id = str(uuid.uuid4())
    connecting = psycopg.AsyncConnection.connect(daemon.database_url, autocommit=True)
    async with await connecting as connection:
        await connection.execute(
            "insert into outbox (id, channel, message, correlation_id, errors)"
            " values (%s, 'emails', %s::json, %s, %s::jsonb)",
            [
                message_id,
                msgspec.json.encode({"type": "email.v1", **message}).decode(),
                message_id,
                msgspec.json.encode([put_off] * PUT_OFF_TIMES_MAX).decode(),
            ],
        )
        await connection.execute("select pg_notify(%s, '')", [NOTIFY_CHANNEL])
    return message_id


async def counted(daemon: DaemonProcess, channel: str, count: int) -> None:
    async def is_counted() -> bool:
        metrics = await daemon.metrics()
        return metrics[f'couponflow_dead_letters{{channel="{channel}"}}'] == count

    await until(is_counted)


async def test_an_unreadable_text_is_dead_at_once_and_given_up_by_hand_and_by_http(
    var: Path, empty_database: dict[str, str], carrier: dict[str, str]
) -> None:
    environment = {**empty_database, **carrier, **IMPATIENT}
    async with DaemonProcess(var, demo=False, environment=environment) as daemon:
        await daemon.start()
        message_ids = {await write_unreadable_email(daemon, number) for number in range(3)}
        found = await letters(daemon, 3)
        assert {letter.message_id for letter in found} == message_ids
        assert {(letter.channel, letter.attempts) for letter in found} == {("emails", 1)}
        assert all("not a message of emails" in letter.reason for letter in found)
        assert all("`$.text`" in letter.reason for letter in found)
        await counted(daemon, "emails", 3)
        shown = await daemon.command("dead-letters", "show", found[0].id)
        assert found[0].message_id in shown.out
        assert "`$.text`" in shown.out
        # Sent again it is told, for a letter is kept without what PostgreSQL cannot keep.
        replayed = await act(daemon, "replay", found[0].id, "--yes")
        assert replayed.report == Report(replayed=1)
        await quiescent(daemon)
        (told,) = await daemon.rows("select id::text, body from notifications")
        assert told[0] == found[0].message_id
        assert str(told[1]).startswith("un\ufffdreadable")
        tried = await act(daemon, "discard", "--channel=emails", "--dry-run")
        assert (tried.dry_run, tried.report) == (True, None)
        assert len(await letters(daemon, 2)) == 2
        given_up = await act(daemon, "discard", found[1].id, "--yes")
        assert given_up.report == Report(discarded=1)
        await give_up_over_http(daemon, found[2])
        await letters(daemon, 0)
        await counted(daemon, "emails", 0)
        assert await daemon.rows("select count(*) from notifications") == [(1,)]
        logged = await daemon.rows("select action, actor from audit_logs order by recorded_at, id")
        assert [action for action, _ in logged] == [
            "dead_letters.replay",
            "dead_letters.discard",
            "dead_letters.discard",
        ]
        assert logged[2][1] == "api:tests"
        await daemon.audit()


async def give_up_over_http(daemon: DaemonProcess, letter: LetterShown) -> None:
    path = f"/api/v1/dead-letters/{letter.id}"
    async with caller(daemon, "admin") as client:
        listed = (await client.get("/api/v1/dead-letters")).json()["items"]
        assert [one["id"] for one in listed] == [letter.id]
        assert (await client.get(path)).json()["message_id"] == letter.message_id
        assert (await client.delete(path)).status_code == 200
        assert (await client.get(path)).status_code == 404


async def test_an_ill_formed_entry_is_kept_and_told_once_when_it_is_sent_again_mended(
    var: Path, empty_database: dict[str, str], stoppable_redis: RedisServer
) -> None:
    environment = {**empty_database, **IMPATIENT, "REDIS_URL": stoppable_redis.url}
    async with DaemonProcess(var, demo=False, environment=environment) as daemon:
        await daemon.start()
        await ask(
            stoppable_redis.port, "XADD", "queue:emails", "*", "message", GOOD, "attempt", "first"
        )
        await ask(stoppable_redis.port, "XADD", "queue:emails", "*", "message", "Hello")
        found = {letter.reason: letter for letter in await letters(daemon, 2)}
        broken, unreadable = sorted(found, key=lambda reason: "JSON" in reason)
        assert "`attempt` is not a whole number" in broken
        assert "is not the JSON of a message" in unreadable
        async with caller(daemon) as client:
            for reason, expected in ((broken, {"replayed": 1}), (unreadable, {"refused": 1})):
                answer = await client.post(
                    "/api/v1/dead-letters/replay", json={"ids": [found[reason].id]}
                )
                assert answer.status_code == 200, answer.text
                told = answer.json()
                assert {name: told[name] for name in expected} == expected
        await quiescent(daemon)
        assert await daemon.rows("select body from notifications") == [("mended",)]
        assert [letter.reason for letter in await letters(daemon, 1)] == [unreadable]
        await counted(daemon, "emails", 1)
        await daemon.audit()
