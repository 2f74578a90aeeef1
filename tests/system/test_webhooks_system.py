"""Webhooks of all senders at a real daemon, as providers, operators and SREs meet it."""

import json
import random
from pathlib import Path

import httpx2
import pytest

from couponflow.sandbox.senders.script import ORDERLY
from tests.system.api import caller
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import IMPATIENT, quiescent, streams_empty
from tests.system.providers import ROLES, Providers, intake_answers

LIVES = 36
"""Three of each kind."""

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.mark.parametrize("server", ["granian", "hypercorn"])
async def test_every_event_has_its_effect_once_however_it_comes(
    var: Path,
    empty_database: dict[str, str],
    carrier: dict[str, str],
    server: str,
    randomness: random.Random,
) -> None:
    providers = Providers(randomness, LIVES)
    environment = {
        **empty_database,
        **carrier,
        **IMPATIENT,
        **providers.settings,
        "COUPONFLOW_WEBHOOKS_SERVER": server,
    }
    async with DaemonProcess(var, roles=ROLES, demo=False, environment=environment) as daemon:
        await daemon.start()
        await intake_answers(daemon)
        await providers.send_all(daemon)
        await providers.settled(daemon)
        await streams_empty(daemon)
        await figures_agree(daemon, providers)
        ended = await daemon.terminate()
        assert ended.code == 0
        assert "Traceback" not in daemon.stderr
        await daemon.audit()


async def figures_agree(daemon: DaemonProcess, providers: Providers) -> None:
    """The metrics say of each sender what the senders themselves know."""
    metrics = await daemon.metrics()

    def total(outcome: str) -> float:
        begins = f'couponflow_webhooks_total{{outcome="{outcome}"'
        return sum(value for name, value in metrics.items() if name.startswith(begins))

    assert total("accepted") == len(providers.events)
    assert total("duplicate") == len(providers.requests) - len(providers.events)
    sources = {source for source, _ in providers.events}
    for source in sources:
        assert metrics[f'couponflow_webhook_seconds_count{{source="{source}"}}'] > 0
    assert len(sources) >= 10


async def test_operators_look_at_events_and_replay_them(
    var: Path, empty_database: dict[str, str], randomness: random.Random
) -> None:
    providers = Providers(randomness, 12, ORDERLY)
    environment = {**empty_database, **IMPATIENT, **providers.settings}
    environment["COUPONFLOW_RAZORPAY_SILENCE_SECONDS"] = "0.2"
    environment["COUPONFLOW_STRIPE_SILENCE_SECONDS"] = "3600"
    async with DaemonProcess(
        var, roles=f"{ROLES},api", demo=False, environment=environment
    ) as daemon:
        await daemon.start()
        await intake_answers(daemon)
        await refuses_strangers(daemon)
        await providers.send_all(daemon)
        await providers.settled(daemon)
        await lists_shows_and_replays(daemon, len(providers.events))
        await providers.settled(daemon)
        async with caller(daemon, "admin") as client:
            await the_api_does_the_same(client, len(providers.events))
        await quiescent(daemon)
        await providers.settled(daemon)
        await daemon.says("webhook source is silent")
        checks = (await daemon.readiness()).checks
        assert not checks["webhook:razorpay"].ok
        assert checks["webhook:stripe"].ok
        metrics = await daemon.metrics()
        assert metrics['couponflow_webhook_silent{source="razorpay"}'] == 1
        await daemon.audit()


async def refuses_strangers(daemon: DaemonProcess) -> None:
    """What is not signed changes nothing but a bounded part of the log."""
    async with httpx2.AsyncClient(verify=False, base_url=daemon.webhooks_url) as client:
        for path, status in (("/razorpay", 401), ("/stripe", 401), ("/nobody", 404)):
            answer = await client.post(path, content=b'{"event":"payment.captured"}' * 100)
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
        assert (await client.get("/razorpay")).status_code == 405
        assert (await client.get("/api/webhook")).json() == {"status": "alive"}
    assert await daemon.rows("select count(*) from outbox") == [(0,)]


async def lists_shows_and_replays(daemon: DaemonProcess, events: int) -> None:
    listed = await daemon.command("webhooks", "list", "--source=razorpay", "--json")
    assert listed.code == 0, listed.err
    items = json.loads(listed.out)["items"]
    payments = [item for item in items if item["event_type"].startswith("payment.")]
    assert {item["status"] for item in payments} == {"processed"}
    shown = await daemon.command("webhooks", "show", payments[0]["id"])
    assert shown.code == 0, shown.err
    assert "@" not in shown.out, "an address is shown"
    named = await daemon.command("webhooks", "show", payments[0]["event_id"], "--json")
    assert json.loads(named.out)["id"] == payments[0]["id"]
    refused = await daemon.command("webhooks", "list", "--status=refused", "--json")
    assert len(json.loads(refused.out)["items"]) == 2
    dry = await daemon.command("webhooks", "replay", "--all", "--dry-run", "--json")
    assert json.loads(dry.out)["matching"]["total"] == events
    replayed = await daemon.command("webhooks", "replay", "--all", "--yes", "--json")
    assert replayed.code == 0, replayed.err
    await quiescent(daemon)
    assert await daemon.rows(
        "select count(*) from audit_logs where action = 'webhooks.replay'"
    ) == [(1,)]


async def the_api_does_the_same(client: httpx2.AsyncClient, events: int) -> None:
    page = (await client.get("/api/v1/webhooks", params={"source": "stripe", "limit": 2})).json()
    assert len(page["items"]) == 2
    shown = await client.get(f"/api/v1/webhooks/{page['items'][0]['id']}")
    assert shown.status_code == 200, shown.text
    replayed = await client.post("/api/v1/webhooks/replay", json={"all": True, "dry_run": True})
    assert replayed.json()["matching"]["total"] == events
    replayed = await client.post("/api/v1/webhooks/replay", json={"filter": {"source": "stripe"}})
    assert replayed.status_code == 200, replayed.text
