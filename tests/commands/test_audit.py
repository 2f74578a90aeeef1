from pathlib import Path

import psycopg

from tests.commands.command_line import CommandLine
from tests.samples import MERCHANT_ID, OFFER_ID, USER_ID, rows_of

CLICK_ID = "0199a0c5-7c00-7000-8000-000000000001"
NAMES = [
    "journalled-clicks-are-kept",
    "click-minutes-agree",
    "click-totals-agree",
    "clicks-have-their-offer",
    "messages-are-in-one-place",
    "messages-at-work-have-a-living-owner",
    "pushed-messages-are-somewhere",
    "nobody-is-told-twice",
    "done-means-told",
    "notifications-follow-their-reports",
    "every-webhook-is-answered-for",
    "every-webhook-is-taken-once",
    "paid-means-captured",
    "refunds-within-payments",
    "transactions-follow-their-reports",
    "payouts-follow-their-reports",
    "done-reports-are-kept",
]


async def store_a_click_of_no_offer(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "create table one_day partition of affiliate_clicks "
            "for values from ('2026-09-20 00:00Z') to ('2026-09-21 00:00Z')"
        )
        await connection.execute(
            "insert into affiliate_clicks values "
            "(%s, %s, %s, %s, '2026-09-20 00:00Z', null, '', '', 'human')",
            [CLICK_ID, MERCHANT_ID, OFFER_ID, USER_ID],
        )


async def test_what_holds_is_said_with_its_meaning(tmp_path: Path, database_url: str) -> None:
    ended = await CommandLine(tmp_path, database_url).run("audit")
    assert ended.code == 0
    assert [line.split()[:2] for line in ended.out.splitlines()] == [
        ["holds", name] for name in NAMES
    ]


async def test_what_is_broken_is_shown_with_its_rows_and_exit_code_1(
    tmp_path: Path, database_url: str
) -> None:
    await store_a_click_of_no_offer(database_url)
    command_line = CommandLine(tmp_path, database_url)
    ended = await command_line.run("audit", "--json")
    content = ended.json()
    assert (ended.code, content["ok"]) == (1, False)
    findings = {finding["name"]: finding for finding in content["findings"]}
    assert not findings["clicks-have-their-offer"]["ok"]
    assert findings["clicks-have-their-offer"]["offenders"] == [
        {"external_click_id": CLICK_ID, "offer_id": OFFER_ID, "merchant_id": MERCHANT_ID}
    ]
    shown = await command_line.run("audit")
    assert shown.code == 1
    assert "BROKEN  clicks-have-their-offer" in shown.out
    assert all(text in shown.out for text in ("external_click_id", CLICK_ID, OFFER_ID))


async def test_the_columns_of_broken_rows_are_shown_whole_on_a_narrow_screen(
    tmp_path: Path, database_url: str
) -> None:
    await store_a_click_of_no_offer(database_url)
    ended = await CommandLine(tmp_path, database_url).run("audit", COLUMNS="30")
    assert ended.code == 1
    assert "external_click_id" not in ended.out
    assert "\N{HORIZONTAL ELLIPSIS}" not in ended.out


async def test_a_schema_that_is_not_current_is_refused_and_left_alone(
    tmp_path: Path, empty_database_url: str
) -> None:
    ended = await CommandLine(tmp_path, empty_database_url).run("audit")
    assert (ended.code, ended.out) == (1, "")
    assert "not current" in ended.err
    assert "couponflow migrate" in ended.err
    tables = "select count(*) from pg_tables where schemaname = 'public'"
    assert await rows_of(empty_database_url, tables) == [(0,)]


async def test_without_any_database_nothing_is_made(tmp_path: Path) -> None:
    ended = await CommandLine(tmp_path, "").run("audit")
    assert (ended.code, ended.out) == (1, "")
    assert "there is no database" in ended.err
    assert "DATABASE_URL" in ended.err
    assert not (tmp_path / "var").exists()
