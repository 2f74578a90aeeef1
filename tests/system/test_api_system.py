"""The API of a real daemon, on either server, as another program meets it."""

from pathlib import Path

import httpx2
import pytest

from tests.system.api import caller, token
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT, quiescent
from tests.system.waiting import until

EMAIL = {"to": "reader@mail.example", "subject": "Hello", "text": "from a program"}
TELLINGS = "select recipient, subject, body from notifications"
EFFECTS = "select (select count(*) from outbox), (select count(*) from audit_logs)"

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]


@pytest.mark.parametrize("server", ["hypercorn", "granian"])
async def test_a_program_with_a_token_pushes_steers_and_sees_the_queues(
    var: Path, empty_database: dict[str, str], carrier: dict[str, str], server: str
) -> None:
    environment = {**empty_database, **carrier, **IMPATIENT, "COUPONFLOW_API_SERVER": server}
    async with DaemonProcess(var, demo=False, environment=environment) as daemon:
        await daemon.start()
        async with caller(daemon) as client:
            await refuses_strangers(daemon, client)
            await pushes_once(daemon, client)
            await pauses_and_resumes(daemon, client)
            await limits(client)
        assert "Traceback" not in daemon.stderr
        await daemon.audit()


async def refuses_strangers(daemon: DaemonProcess, client: httpx2.AsyncClient) -> None:
    """Nothing comes of what is asked without a token, or with one of the wrong role or message."""
    before = await daemon.rows(EFFECTS)
    shopper = {"Authorization": f"Bearer {await token(daemon, 'shopper')}"}
    nobody = {"Authorization": ""}
    for path in ("/api/v1/queue/emails", "/api/v1/queue/emails/pause"):
        for headers, status in ((nobody, 401), (shopper, 403)):
            answer = await client.post(path, json=EMAIL, headers=headers)
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
    for path, body, status in (
        ("/api/v1/queue/pigeons", EMAIL, 404),
        ("/api/v1/queue/emails", {**EMAIL, "to": "nobody"}, 422),
        ("/api/v1/queue/emails/limits", {"concurrency": 0}, 422),
    ):
        answer = await client.post(path, json=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["type"].startswith("urn:couponflow:problem:")
    assert await daemon.rows(EFFECTS) == before
    assert await daemon.rows(TELLINGS) == []


async def pushes_once(daemon: DaemonProcess, client: httpx2.AsyncClient) -> None:
    key = {"Idempotency-Key": "order-7"}
    answers = [await client.post("/api/v1/queue/emails", json=EMAIL, headers=key) for _ in range(2)]
    await quiescent(daemon)
    # Also when it is done.
    answers.append(await client.post("/api/v1/queue/emails", json=EMAIL, headers=key))
    assert [answer.status_code // 100 for answer in answers] == [2, 2, 2]
    assert len({answer.json()["message_id"] for answer in answers}) == 1
    other = await client.post(
        "/api/v1/queue/emails", json={**EMAIL, "text": "something else"}, headers=key
    )
    assert other.status_code == 422, other.text
    await quiescent(daemon)
    assert await daemon.rows(TELLINGS) == [tuple(EMAIL.values())]


async def pauses_and_resumes(daemon: DaemonProcess, client: httpx2.AsyncClient) -> None:
    paused = await client.post("/api/v1/queue/emails/pause")
    assert paused.json()["paused"] is True

    async def is_heard() -> bool:
        return "paused" in (await daemon.readiness()).checks["consumer:emails"].detail

    await until(is_heard)
    pushed = await client.post("/api/v1/queue/emails", json=EMAIL)
    stats = (await client.get("/api/v1/queue/stats")).json()["channels"]
    assert sorted(stats) == ["cashback", "clicks", "emails", "orders", "sms", "webhooks"]
    assert [name for name in stats if stats[name]["paused"]] == ["emails"]
    assert stats["emails"]["outbox"]["due"] == 1
    assert len(await daemon.rows(TELLINGS)) == 1
    resumed = await client.post("/api/v1/queue/emails/resume")
    assert resumed.json()["paused"] is False
    await quiescent(daemon)
    told = [row[0] for row in await daemon.rows("select id::text from notifications")]
    assert len(told) == 2
    assert pushed.json()["message_id"] in told
    actions = await daemon.rows(
        "select action, actor from audit_logs where subject like '%emails%' order by id"
    )
    assert {actor for _, actor in actions} == {"api:tests"}


async def limits(client: httpx2.AsyncClient) -> None:
    changed = await client.post(
        "/api/v1/queue/sms/limits", json={"rate_per_second": 5, "concurrency": 2}
    )
    assert changed.json() == {
        "channel": "sms",
        "paused": False,
        "rate_per_second": 5.0,
        "concurrency": 2,
    }
    lifted = await client.post("/api/v1/queue/sms/limits", json={"rate_per_second": None})
    assert (lifted.json()["rate_per_second"], lifted.json()["concurrency"]) == (None, 2)
    stats = (await client.get("/api/v1/queue/stats")).json()["channels"]["sms"]
    assert (stats["rate_per_second"], stats["concurrency"]) == (None, 2)
