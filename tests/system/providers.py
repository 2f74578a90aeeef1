"""All providers at once: they send to a real daemon until each event is acknowledged, and know
what must have come of it.
"""

import random
from collections.abc import Mapping, Sequence

import anyio
import httpx2

from couponflow.kernel.clock import SystemClock
from couponflow.sandbox.senders.events import SignedRequest, Thing
from couponflow.sandbox.senders.keys import demo_keys, settings_of
from couponflow.sandbox.senders.script import Chaos, Known, expected, script
from couponflow.sandbox.senders.signing import sign_again
from tests.system.daemon_process import DaemonProcess
from tests.system.mail import quiescent
from tests.system.raw_http import port_answers
from tests.system.waiting import POLL_SECONDS, until

CHAOS = Chaos(
    step_seconds=0.001,
    reorder_seconds=0.03,
    duplicate_probability=0.3,
    delay_seconds=0.05,
    late_seconds=0.1,
)
"""Everything happens, within a second."""
ROLES = "webhooks,inbox,checkout,cashback,email,sms"
SENDERS = 8
RETRIED_STATUSES = (408, 429, 503)

_clock = SystemClock()

STATES = {
    "payment": "select provider || ' ' || provider_payment_id, reported_state from payments",
    "refund": "select provider || ' ' || provider_refund_id, state from refunds",
    "order": "select ' ' || number, state from orders",
    "payout": "select provider || ' ' || payout_id, state from payouts",
    "shipment": "select provider || ' ' || tracking_code, state from shipments",
    "stock": "select ' ' || sku, stock::text from products",
}
"""What is known of each thing; of a sale the states depend on when they were told."""


class Providers:
    """What they send, with one seed, and what was acknowledged."""

    def __init__(
        self,
        randomness: random.Random,
        lives: int,
        chaos: Chaos = CHAOS,
        known: Known | None = None,
    ) -> None:
        self.keys = demo_keys(randomness)
        self.requests: Sequence[SignedRequest] = script(
            randomness, self.keys, _clock.now(), lives, chaos, known or Known()
        )
        self.acknowledged: set[tuple[str, str]] = set()
        """By source and the event's id."""
        self.statuses: list[int] = []

    @property
    def settings(self) -> Mapping[str, str]:
        """With these a daemon believes them, and soon tries again what it does not understand."""
        return {
            **settings_of(self.keys),
            "COUPONFLOW_QSTASH_DESTINATION_URLS": self.keys.qstash_destination_url,
            "COUPONFLOW_WEBHOOKS_REPORT_FIRST_SECONDS": "0.05",
            "COUPONFLOW_WEBHOOKS_REPORT_ATTEMPTS": "100",
        }

    @property
    def events(self) -> set[tuple[str, str]]:
        return {(request.source, request.event_id) for request in self.requests}

    async def send_all(self, daemon: DaemonProcess) -> None:
        """Send every delivery until it is acknowledged, however often the daemon dies meanwhile."""
        waiting = iter(self.requests)

        async def send() -> None:
            for request in waiting:
                await self._deliver(client, request)

        async with (
            httpx2.AsyncClient(verify=False, base_url=daemon.webhooks_url, timeout=5.0) as client,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(SENDERS):
                tasks.start_soon(send)

    async def _deliver(self, client: httpx2.AsyncClient, request: SignedRequest) -> None:
        retried = request.retried
        while True:
            try:
                answer = await client.request(
                    request.method, request.path, headers=request.headers, content=request.body
                )
            except httpx2.TransportError:
                answer = None
            if answer is not None:
                self.statuses.append(answer.status_code)
                if answer.is_success:
                    self.acknowledged.add((request.source, request.event_id))
                    return
                assert answer.status_code in RETRIED_STATUSES, (request.source, answer.text)
                assert answer.headers["retry-after"]
            await anyio.sleep(POLL_SECONDS)
            retried += 1
            request = sign_again(request, self.keys, _clock.now(), retried)

    async def settled(self, daemon: DaemonProcess) -> None:
        """Return once everything has had its effect; fails unless that is what must come of it."""
        await quiescent(daemon)
        assert self.acknowledged == self.events
        logged = await daemon.rows(
            "select count(*), count(distinct (source, event_id)) from webhook_logs"
            " where verdict = 'verified'"
        )
        assert list(logged) == [(len(self.events), len(self.events))]
        letters = await daemon.rows(
            "select channel, reason from dead_letters where message_id not like 'reported %'"
        )
        assert list(letters) == [], "something died that no other service gave up"
        wanted = expected(self.requests)
        for kind, query in STATES.items():
            found = {str(row[0]): row[1] for row in await daemon.rows(query)}
            assert found == {
                _name(thing): state for thing, state in wanted.items() if thing.kind == kind
            }, kind
        sales = {thing.id for thing in wanted if thing.kind == "transaction"}
        rows = await daemon.rows("select native_id from affiliate_transactions")
        assert sorted(str(row[0]) for row in rows) == sorted(sales)


def _name(thing: Thing) -> str:
    provider = thing.provider if thing.kind not in ("order", "stock") else ""
    return f"{provider} {thing.id}"


async def intake_answers(daemon: DaemonProcess) -> None:
    """Return once the intake's port does."""
    await until(lambda: port_answers(daemon.webhooks_port))
