from pathlib import Path

import pytest

from couponflow.kernel.database import Database
from tests.commands.command_line import CommandLine
from tests.commands.test_dead_letters import terminal_that_says
from tests.samples import rows_of
from tests.webhooks.webhook_rows import LoggedRow, event, log_events, log_one_of_each

pytestmark = pytest.mark.once

UNKNOWN_ID = "01920000-0000-7000-8000-000000000000"
OUTBOX = "select correlation_id from outbox where dedup_key is not null order by correlation_id"
AUDIT = "select actor, action from audit_logs"


@pytest.fixture
def command_line(tmp_path: Path, database_url: str) -> CommandLine:
    return CommandLine(tmp_path, database_url)


@pytest.fixture
async def logged(database: Database) -> dict[str, LoggedRow]:
    return await log_one_of_each(database)


async def replayed_ids(database: Database) -> list[object]:
    return [row[0] for row in await rows_of(database.url, OUTBOX)]


async def test_events_are_listed_newest_first_in_80_columns(
    command_line: CommandLine, database: Database, logged: dict[str, LoggedRow]
) -> None:
    await log_events(database, event(5, source="generic-" * 9, event_id="[x]" * 99))
    ended = await command_line.run("webhooks", "list", COLUMNS="80")
    assert (ended.code, ended.err) == (0, "")
    headings, *lines = ended.out.splitlines()
    assert headings.split() == ["id", "received", "status", "bytes"]
    assert [line.split()[3] for line in lines[::2]] == [
        *("processed", "refused", "dead", "waiting", "processed")
    ]
    assert lines[2].split()[:3] == [logged["refused"].id, "2026-09-21", "13:56:44"]
    assert lines[3] == "  mailer  bad-signature  mail.wanted"
    assert lines[5] == "  mailer  mail.wanted  evt_3"
    assert max(map(len, ended.out.splitlines())) == 80


async def test_a_list_can_be_narrowed(
    command_line: CommandLine, logged: dict[str, LoggedRow]
) -> None:
    for options, expected in (
        (["--source", "mailer", "--type", "mail.wanted", "--status", "dead"], ["dead"]),
        (["--text", "count", "--until", "2026-09-21T13:56:42"], ["processed"]),
        (
            ["--since", "2020-01-01", "--limit", "1", logged["dead"].id, logged["waiting"].id],
            ["dead"],
        ),
    ):
        ended = await command_line.run("webhooks", "list", "--json", *options)
        found = [item["id"] for item in ended.json()["items"]]
        assert found == [logged[name].id for name in expected]
        assert ended.json()["more"] == ("--limit" in options)


async def test_a_list_says_that_nothing_matches_or_that_there_is_more(
    command_line: CommandLine, logged: dict[str, LoggedRow]
) -> None:
    nothing = await command_line.run("webhooks", "list", "--source", "nobody")
    assert (nothing.code, nothing.out) == (0, "No events match.\n")
    some = await command_line.run("webhooks", "list", "--limit", "3")
    assert some.out.endswith("... and more; raise --limit, or go back with --until\n")


async def test_an_event_is_shown_redacted_and_revealed_on_record(
    command_line: CommandLine, database: Database
) -> None:
    logged = event(body=b'{"email":"ann@shop.example"}', headers={"x-[id]": "7"})
    await log_events(database, logged)
    shown = await command_line.run("webhooks", "show", logged.id)
    assert (shown.code, shown.err) == (0, "")
    assert "received: 2026-09-21 13:56:41.123456 from 192.0.2.9\n" in shown.out
    assert "header    x-[id]: 7\n" in shown.out
    assert '{\n  "email": "[redacted]"\n}\n' in shown.out
    assert await rows_of(database.url, AUDIT) == []
    revealed = await command_line.run("webhooks", "show", logged.id, "--reveal", "--json")
    assert revealed.json()["body"]["text"] == '{"email":"ann@shop.example"}'
    ((actor, action),) = await rows_of(database.url, AUDIT)
    assert (str(actor)[:4], action) == ("cli:", "webhooks.reveal")


async def test_a_dead_event_is_shown_with_the_reason(
    command_line: CommandLine, logged: dict[str, LoggedRow]
) -> None:
    shown = await command_line.run("webhooks", "show", logged["dead"].id)
    assert "status:   dead\n" in shown.out
    assert "of webhooks: no such order\n" in shown.out


async def test_an_event_that_is_not_there_is_exit_code_1(
    command_line: CommandLine, database: Database
) -> None:
    for action in (["show"], ["replay", "--yes"]):
        ended = await command_line.run("webhooks", *action, UNKNOWN_ID)
        assert (ended.code, ended.out) == (1, "")
        assert "no event" in ended.err


async def test_a_replay_says_what_matched_and_what_became_of_it(
    command_line: CommandLine, database: Database, logged: dict[str, LoggedRow]
) -> None:
    ended = await command_line.run(
        "webhooks", "replay", "--source", "mailer", "--yes", COLUMNS="80"
    )
    assert (ended.code, ended.err) == (0, "")
    table, _, _ = ended.out.partition("4 events")
    assert max(map(len, table.splitlines())) <= 80
    assert "4 events match.\n2 replayed, 1 refused, 1 skipped\n" in ended.out
    assert f"  {logged['waiting'].id} skipped: it is on its way already\n" in ended.out
    assert await replayed_ids(database) == [logged["processed"].id]
    assert {action for _, action in await rows_of(database.url, AUDIT)} == {
        *("webhooks.replay", "dead_letters.replay")
    }
    again = await command_line.run("webhooks", "replay", "--all", "--yes", "--json")
    assert again.code == 1
    assert again.json()["matching"]["total"] == 3
    assert again.json()["report"]["skipped"] == 3


async def test_a_dry_run_changes_nothing(
    command_line: CommandLine, database: Database, logged: dict[str, LoggedRow]
) -> None:
    ended = await command_line.run("webhooks", "replay", "--status", "dead", "--dry-run", "--json")
    assert ended.code == 0
    assert ended.json() == {
        "dry_run": True,
        "matching": {
            "total": 1,
            "groups": [
                {"source": "mailer", "event_type": "mail.wanted", "status": "dead", "events": 1}
            ],
        },
        "report": None,
    }
    assert await rows_of(database.url, AUDIT) == []
    assert await replayed_ids(database) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--all"], "--yes"),
        (["--yes"], "give ids or filters"),
        (["--yes", "--all", UNKNOWN_ID], "--all alone"),
        (["--yes", "--since", "yesterday"], "'yesterday' is no moment"),
        (["--yes", "--text", ""], "every event holds an empty text"),
        (["--yes", "--status", "done"], "'done' is not one of"),
    ],
)
async def test_wrong_usage_is_exit_code_2_and_changes_nothing(
    command_line: CommandLine,
    database: Database,
    logged: dict[str, LoggedRow],
    options: list[str],
    text: str,
) -> None:
    ended = await command_line.run("webhooks", "replay", *options)
    assert (ended.code, ended.out) == (2, "")
    assert text in ended.err
    assert await rows_of(database.url, AUDIT) == []
    assert await replayed_ids(database) == []


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"\n", 1)])
async def test_on_a_terminal_it_asks_first(
    command_line: CommandLine,
    database: Database,
    logged: dict[str, LoggedRow],
    answer: bytes,
    code: int,
) -> None:
    with terminal_that_says(answer) as terminal:
        ended = await command_line.run_reading(
            terminal, "webhooks", "replay", "--status", "processed"
        )
    assert ended.code == code
    assert "Replay 1 events? [y/N]" in ended.err
    assert ("nothing was changed" in ended.err) == (code == 1)
    assert len(await replayed_ids(database)) == 1 - code
