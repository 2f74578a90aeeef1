"""The catalogue changes in PostgreSQL, and shoppers are led accordingly within two seconds."""

import pytest

from tests.system.clicks import PERSON
from tests.system.daemon_process import DaemonProcess
from tests.system.shop import FALLBACK_URL, WITHOUT_FALLBACK, destination, link, offer_id
from tests.system.waiting import until

CHANGE_SECONDS = 2.0

pytestmark = [pytest.mark.system, pytest.mark.timeout(90)]


async def leads_to(daemon: DaemonProcess, path: str, status: int, location: str) -> None:
    """Return once a link is answered so; fails if that takes longer than it may."""

    async def does() -> bool:
        answer = await daemon.get(path, PERSON)
        return answer.status == status and location in answer.headers["location"]

    await until(does, seconds=CHANGE_SECONDS)


async def test_a_changed_offer_is_seen_at_once(plain_daemon: DaemonProcess) -> None:
    path, offer = link("moving", "x"), offer_id("moving")
    await leads_to(plain_daemon, path, 302, destination("moving"))
    await plain_daemon.rows(f"update offers set url = 'https://new.example' where id = '{offer}'")
    await leads_to(plain_daemon, path, 302, "&url=https%3A%2F%2Fnew.example")


async def test_a_withdrawn_offer_is_seen_at_once(plain_daemon: DaemonProcess) -> None:
    path, offer = link("closing", "x"), offer_id("closing")
    await leads_to(plain_daemon, path, 302, destination("closing"))
    await plain_daemon.rows(f"update offers set active = false where id = '{offer}'")
    await leads_to(plain_daemon, path, 302, FALLBACK_URL)
    await plain_daemon.rows(f"update offers set active = true where id = '{offer}'")
    await leads_to(plain_daemon, path, 302, destination("closing"))


async def test_a_changed_tracking_template_is_seen_at_once(plain_daemon: DaemonProcess) -> None:
    path = link("live", "x", WITHOUT_FALLBACK)
    template = "https://other.example/go?sid={click_id}&to={url}"
    await leads_to(plain_daemon, path, 302, "https://network.example/click?subid=")
    await plain_daemon.rows(
        f"update merchants set tracking_template = '{template}' where slug = '{WITHOUT_FALLBACK}'"
    )
    await leads_to(plain_daemon, path, 302, "https://other.example/go?sid=")


async def test_changes_are_seen_after_the_listening_connection_was_cut(
    plain_daemon: DaemonProcess,
) -> None:
    cut = await plain_daemon.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and query ilike 'listen %couponflow_catalogue%'"
    )
    assert len(cut) == 1
    path, offer = link("unheard", "x"), offer_id("unheard")
    await plain_daemon.rows(f"update offers set url = 'https://heard.example' where id = '{offer}'")
    await leads_to(plain_daemon, path, 302, "&url=https%3A%2F%2Fheard.example")


async def test_changes_are_seen_when_no_notification_comes(strict_daemon: DaemonProcess) -> None:
    path, offer = link("polled", "x"), offer_id("polled")
    await strict_daemon.rows(
        "alter table offers disable trigger offers_notify;"
        f"update offers set active = false where id = '{offer}'"
    )
    # One address would soon be over its limit.
    addresses = (f"192.0.2.{number}" for number in range(250))

    async def is_withdrawn() -> bool:
        headers = {**PERSON, "X-Forwarded-For": next(addresses)}
        return (await strict_daemon.get(path, headers)).headers["location"] == FALLBACK_URL

    await until(is_withdrawn, seconds=CHANGE_SECONDS)
    await strict_daemon.rows("alter table offers enable trigger offers_notify")
