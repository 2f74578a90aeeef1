"""PostgreSQL is away, the disk is full, the daemon is stopped, senders misbehave: nothing that was
acknowledged is lost, and nothing is acknowledged that is not written down.
"""

import random
from pathlib import Path

import anyio
import httpx2
import pytest

from couponflow.sandbox.senders.signing import razorpay_signature
from tests.postgres_server import PostgresServer
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT
from tests.system.providers import ROLES, Providers, intake_answers
from tests.system.raw_http import answer_to, request_bytes, try_answer_to
from tests.system.waiting import until

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


async def test_with_postgres_away_senders_are_told_to_come_again_and_nothing_is_lost(
    var: Path, stoppable_postgres: PostgresServer, randomness: random.Random
) -> None:
    providers = Providers(randomness, lives=24)
    environment = {
        **IMPATIENT,
        **providers.settings,
        "DATABASE_URL": stoppable_postgres.url,
        "COUPONFLOW_DATABASE_CONNECT_TIMEOUT_SECONDS": "1",
        "COUPONFLOW_WEBHOOKS_STORE_SECONDS": "1",
    }
    async with DaemonProcess(var, roles=ROLES, demo=False, environment=environment) as daemon:
        await daemon.start()
        await intake_answers(daemon)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(providers.send_all, daemon)
            await until(lambda: _answered(providers, 200, 20))
            await stoppable_postgres.stop()
            during = len(providers.statuses)
            await until(lambda: _answered(providers, 503, 5))
            # Those on their way when it stopped may have been in time.
            assert set(providers.statuses[during + 8 :]) <= {503}
            await stoppable_postgres.start()
        await providers.settled(daemon)
        assert "Traceback" not in daemon.stderr
        await daemon.audit()


async def _answered(providers: Providers, status: int, times: int) -> bool:
    return providers.statuses.count(status) >= times


async def test_a_full_disk_is_answered_with_come_again(
    var: Path, empty_database: dict[str, str]
) -> None:
    """A trigger says what PostgreSQL says then: error 53100."""
    async with _daemon(var, empty_database) as daemon:
        await daemon.start()
        await intake_answers(daemon)
        await daemon.rows(
            "create function full_disk() returns trigger language plpgsql as"
            " $$begin raise exception 'No space left on device' using errcode = '53100'; end$$;"
            " create trigger full_disk before insert on webhook_logs"
            " for each row execute function full_disk()"
        )
        async with httpx2.AsyncClient(verify=False, base_url=daemon.webhooks_url) as client:
            answer = await _post_signed(client, b'{"event":"x"}')
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            await daemon.rows("drop trigger full_disk on webhook_logs")
            assert (await _post_signed(client, b'{"event":"x"}')).status_code == 200
        assert await daemon.rows("select count(*) from webhook_logs") == [(1,)]


async def test_every_acknowledged_event_is_kept_when_the_daemon_is_stopped(
    var: Path, empty_database: dict[str, str], randomness: random.Random
) -> None:
    acknowledged: list[int] = []
    async with _daemon(var, empty_database) as daemon:
        await daemon.start()
        await intake_answers(daemon)

        async def send(first: int) -> None:
            async with httpx2.AsyncClient(verify=False, base_url=daemon.webhooks_url) as client:
                number = first
                while True:
                    try:
                        answer = await _post_signed(client, b'{"event":"number %d"}' % number)
                    except httpx2.TransportError:
                        return
                    if answer.status_code != 200:
                        assert answer.status_code == 503
                        return
                    acknowledged.append(number)
                    number += 16

        async with anyio.create_task_group() as tasks:
            for first in range(16):
                tasks.start_soon(send, first)

            async def enough() -> bool:
                return len(acknowledged) > 300

            await until(enough)
            ended = await daemon.terminate()
        assert (ended.code, ended.seconds < 15) == (0, True)
        rows = await daemon.rows("select convert_from(body, 'UTF8') from webhook_logs")
        kept = {int(str(row[0]).split()[1].rstrip('"}')) for row in rows}
        assert set(acknowledged) <= kept
        await daemon.audit()


@pytest.mark.parametrize("server", ["granian", "hypercorn"])
async def test_senders_that_dawdle_shout_or_lie_are_bounded(
    var: Path, empty_database: dict[str, str], server: str
) -> None:
    limits = {
        "COUPONFLOW_WEBHOOKS_SERVER": server,
        "COUPONFLOW_WEBHOOKS_BODY_SECONDS": "0.5",
        "COUPONFLOW_WEBHOOKS_BODY_BYTES": "1024",
        "COUPONFLOW_WEBHOOKS_REFUSALS_KEPT_PER_MINUTE": "3",
    }
    async with _daemon(var, {**empty_database, **limits}) as daemon:
        await daemon.start()
        await intake_answers(daemon)
        port = daemon.webhooks_port
        slow = request_bytes("POST", "/razorpay", {"Content-Length": "100"}) + b"only this"
        large = request_bytes("POST", "/razorpay", {"Content-Length": "1025"}) + b"x" * 1025
        endless = request_bytes("POST", "/razorpay", {"Transfer-Encoding": "chunked"})
        endless += b"400\r\n" + b"x" * 1024 + b"\r\n400\r\n" + b"x" * 1024 + b"\r\n"
        assert (await answer_to(port, slow)).status == 408
        assert (await answer_to(port, large)).status == 413
        assert (await answer_to(port, endless)).status == 413
        for garbage in (b"\x00\xff\r\n\r\n", b"POST /razorpay HTTP/9\r\n\r\n", b"\x16\x03\x01"):
            answer = await try_answer_to(port, garbage + b"\r\n\r\n")
            assert answer is None or answer.status in (400, 505)
        async with httpx2.AsyncClient(verify=False, base_url=daemon.webhooks_url) as client:
            for _ in range(20):
                assert (await client.post("/razorpay", content=b"x" * 1000)).status_code == 401
            assert (await _post_signed(client, b'{"event":"x"}')).status_code == 200

        async def refusals_are_written() -> bool:
            rows = await daemon.rows(
                "select count(*), max(octet_length(body)), max(body_bytes) from webhook_logs"
                " where verdict = 'bad-signature'"
            )
            return list(rows) == [(3, 256, 1000)]

        await until(refusals_are_written)
        assert (await daemon.metrics())["couponflow_webhook_refusals_unwritten_total"] == 17
        assert "Traceback" not in daemon.stderr


SECRET = "a secret of the tests"


def _daemon(var: Path, environment: dict[str, str]) -> DaemonProcess:
    settings = {"RAZORPAY_WEBHOOK_SECRET": f"an older one,{SECRET}", **IMPATIENT}
    return DaemonProcess(var, roles=ROLES, demo=False, environment={**environment, **settings})


async def _post_signed(client: httpx2.AsyncClient, body: bytes) -> httpx2.Response:
    headers = {
        "X-Razorpay-Signature": razorpay_signature(SECRET, body),
        "x-razorpay-event-id": f"evt_{hash(body)}",
    }
    return await client.post("/razorpay", content=body, headers=headers)
