"""A click from both ends: the answer a shopper got, and the row that came of it."""

import re
from dataclasses import dataclass

from tests.system.daemon_process import DaemonProcess
from tests.system.raw_http import Answer

BROWSER = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0"
PERSON = {"User-Agent": BROWSER}


@dataclass(frozen=True, slots=True)
class StoredClick:
    """A row of affiliate_clicks."""

    merchant: str
    offer_id: str
    user_id: str
    ip: str
    user_agent: str
    referer: str
    verdict: str


def click_id_of(answer: Answer) -> str:
    assert answer.status == 302, answer
    found = re.search(r"[?&]subid=([0-9a-f-]{36})&", answer.headers["location"])
    assert found is not None, answer
    return found[1]


async def stored_click(daemon: DaemonProcess, click_id: str) -> StoredClick:
    query = f"""
        select m.slug, c.offer_id::text, c.user_id::text, host(c.ip), c.user_agent, c.referer,
               c.verdict
        from affiliate_clicks c join merchants m on m.id = c.merchant_id
        where c.external_click_id = '{click_id}'
    """
    await daemon.stored([click_id])
    rows = await daemon.rows(query)
    assert len(rows) == 1
    return StoredClick(*(str(value) for value in rows[0]))


async def clicked(
    daemon: DaemonProcess, path: str, headers: dict[str, str], *, method: str = "GET"
) -> StoredClick:
    """Follow a link; the row that this made."""
    answer = await daemon.get(path, headers, method=method)
    return await stored_click(daemon, click_id_of(answer))


async def refused(
    daemon: DaemonProcess,
    path: str,
    status: int,
    problem: str,
    headers: dict[str, str] | None = None,
) -> Answer:
    """Ask for a path that must be refused; no click comes of it."""
    before = await daemon.metrics()
    answer = await daemon.get(path, headers or {})
    assert (answer.status, answer.problem) == (status, problem)
    assert answer.headers["cache-control"] == "no-store"
    assert "location" not in answer.headers
    after = await daemon.metrics()
    recorded = 'couponflow_redirects_total{outcome="redirected"}'
    assert after[recorded] == before[recorded]
    counted = f'couponflow_redirects_total{{outcome="{problem}"}}'
    assert after[counted] == before.get(counted, 0) + 1
    return answer
