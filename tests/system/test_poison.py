"""A message that kills its process is dead after its attempts, and takes nobody with it."""

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psycopg
import pytest

from couponflow.kernel.migrations import migrate
from couponflow.kernel.outbox import publish
from couponflow.messages import EmailRequested
from tests.redis_server import ask
from tests.system import poison_worker
from tests.system.crash_scenarios import count
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT, Sender, quiescent, sending, streams_empty
from tests.system.poison_worker import POISON
from tests.system.waiting import until

ATTEMPTS = 3
BYSTANDERS = 40
POISONOUS = EmailRequested(to="reader@mail.example", subject="Hello", text=POISON)
DIED = "the worker died, or lost its lease, during this attempt"
DIED_OF_AN_ENTRY = "the consumer died, or gave the message back, during this attempt"

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]


class Letter(msgspec.Struct, frozen=True, array_like=True):
    """What is left of a dead message; in this order."""

    message_id: str
    attempts: int
    errors: list[tuple[int, str]]


async def letters(daemon: DaemonProcess) -> list[Letter]:
    rows = await daemon.rows(
        "select message_id, attempts, (select coalesce(json_agg("
        "json_build_array(error -> 'attempt', error -> 'error')), '[]')"
        " from jsonb_array_elements(errors) as error) from dead_letters"
    )
    return msgspec.convert(rows, list[Letter])


async def killed_and_started_until_it_is_dead(
    var: Path,
    environment: dict[str, str],
    sender: Sender,
    poison: Callable[[], Awaitable[str]],
) -> Letter:
    """Poison a worker and start it again as a service manager would; the only letter there is."""
    program = [str(Path(poison_worker.__file__))]
    async with DaemonProcess(
        var, roles="email,sms", demo=False, environment=environment, program=program
    ) as worker:
        await sender.send(BYSTANDERS)
        message_id = await poison()
        await sender.send(BYSTANDERS)
        async with sending(sender):
            for _ in range(ATTEMPTS):
                await worker.launch()
                assert (await worker.ended()).code == -signal.SIGKILL
            await worker.start()
        await until(lambda: _is_dead(worker))
        await quiescent(worker)
        await streams_empty(worker)
        found = await letters(worker)
        assert [letter.message_id for letter in found] == [message_id], found
        told = [str(row[0]) for row in await worker.rows("select id::text from notifications")]
        assert sorted(told) == sorted(sender.message_ids)
        assert worker.running
        await worker.audit()
    return found[0]


async def _is_dead(worker: DaemonProcess) -> bool:
    assert worker.running, "it has exited"
    return await count(worker, "dead_letters") > 0


async def test_a_message_that_kills_its_worker_dies_alone_after_its_attempts(
    var: Path, empty_database: dict[str, str], carrier: dict[str, str]
) -> None:
    url = empty_database["DATABASE_URL"]
    await migrate(url)

    async def poison() -> str:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            message_id = await publish(connection, POISONOUS)
        assert message_id is not None
        return message_id

    environment = {**empty_database, **carrier, **IMPATIENT}
    letter = await killed_and_started_until_it_is_dead(var, environment, Sender(url), poison)
    assert letter.attempts == ATTEMPTS
    assert letter.errors == [(number, DIED) for number in range(1, ATTEMPTS + 1)]


async def test_an_entry_of_another_program_that_kills_its_worker_dies_alone_after_its_attempts(
    var: Path, empty_database: dict[str, str], redis_url: str
) -> None:
    url = empty_database["DATABASE_URL"]
    await migrate(url)
    port = urlsplit(redis_url).port or 6379
    message_id = "01920000-0000-7000-8000-00000000dead"

    async def poison() -> str:
        fields = ("message", msgspec.json.encode(POISONOUS).decode(), "id", message_id)
        assert "-" in await ask(port, "XADD", "queue:emails", "*", *fields)
        return message_id

    environment = {**empty_database, "REDIS_URL": redis_url, **IMPATIENT}
    letter = await killed_and_started_until_it_is_dead(var, environment, Sender(url), poison)
    assert letter.attempts == ATTEMPTS
    assert letter.errors == [(1, DIED_OF_AN_ENTRY), (2, DIED), (3, DIED)]
