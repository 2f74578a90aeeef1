from pathlib import Path
from typing import get_args

import pytest

from couponflow.kernel.database import Database
from couponflow.webhooks.event_filter import EventStatus
from tests.commands.command_line import CommandLine
from tests.commands.test_dead_letters import terminal_that_says
from tests.kernel.letters import letter
from tests.samples import rows_of
from tests.webhooks.test_showing import ids_following
from tests.webhooks.webhook_rows import (
    LoggedRow,
    event,
    give_up,
    letter_of,
    log_events,
    log_one_of_each,
    make_dead,
)

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


async def test_events_are_listed_newest_first_and_whole_also_in_80_columns(
    command_line: CommandLine, database: Database, logged: dict[str, LoggedRow]
) -> None:
    event_id = f"sha256:{'0123456789abcdef' * 4}"
    await log_events(database, event(5, source="generic/[shop]", event_id=event_id))
    ended = await command_line.run("webhooks", "list", COLUMNS="80")
    assert (ended.code, ended.err) == (0, "")
    headings, *lines = ended.out.splitlines()
    assert headings.split() == ["id", "received", "(UTC)", "status", "bytes"]
    assert lines[1] == f"  generic/[shop]  mail.wanted  {event_id}"
    assert [line.split()[3] for line in lines[::2]] == [
        *("processed", "refused", "dead", "waiting", "processed")
    ]
    assert lines[2].split()[:3] == [logged["refused"].id, "2026-09-21", "13:56:44"]
    assert lines[3] == "  mailer  bad-signature  mail.wanted"
    assert lines[5] == "  mailer  mail.wanted  evt_3"
    assert max(map(len, [headings, *lines[::2]])) <= 80


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
    nothing = await command_line.run("webhooks", "list", "--source", "stripe")
    assert (nothing.code, nothing.out) == (0, "No events match.\n")
    some = await command_line.run("webhooks", "list", "--limit", "3")
    assert "... and more; raise --limit, or go on with --cursor " in some.out


async def test_a_list_goes_on_where_one_ended_within_a_second(
    command_line: CommandLine, database: Database
) -> None:
    rows = [event(number / 1000) for number in range(5)]
    await log_events(database, *rows)
    found: list[str] = []
    options: list[str] = []
    while True:
        ended = await command_line.run("webhooks", "list", "--limit", "2", *options)
        _, *lines = ended.out.splitlines()
        found += [line.split()[0] for line in lines if not line.startswith(("  ", "..."))]
        if not lines[-1].startswith("..."):
            break
        options = lines[-1].split()[-2:]
    assert found == [row.id for row in reversed(rows)]


async def test_events_are_found_by_what_their_senders_call_them(
    command_line: CommandLine, database: Database, logged: dict[str, LoggedRow]
) -> None:
    listed = await command_line.run("webhooks", "list", "--event-id", "evt_2", "--json")
    assert [item["id"] for item in listed.json()["items"]] == [logged["waiting"].id]
    shown = await command_line.run("webhooks", "show", "evt_3")
    assert (shown.code, f"event:    {logged['dead'].id}\n" in shown.out) == (0, True)
    await log_events(database, event(9, source="stripe", event_id="evt_3"))
    several = await command_line.run("webhooks", "show", "evt_3")
    assert several.code == 1
    assert [line.split()[0] for line in several.out.splitlines()[2::2]] == ["stripe", "mailer"]
    assert "several events evt_3; show one of them by its own id" in several.err
    replayed = await command_line.run("webhooks", "replay", "--event-id", "evt_1", "--yes")
    assert "1 event matches.\n1 replayed, 0 refused, 0 skipped\n" in replayed.out
    assert await replayed_ids(database) == [logged["processed"].id]


async def test_an_event_is_shown_redacted_and_revealed_on_record(
    command_line: CommandLine, database: Database
) -> None:
    logged = event(body=b'{"email":"ann@shop.example"}', headers={"x-[id]": "7"})
    await log_events(database, logged)
    shown = await command_line.run("webhooks", "show", logged.id)
    assert (shown.code, shown.err) == (0, "")
    assert "received: 2026-09-21 13:56:41.123456 UTC from 192.0.2.9\n" in shown.out
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


async def test_the_reason_of_a_death_is_shown_once(
    command_line: CommandLine, database: Database
) -> None:
    logged = event()
    (follower,) = ids_following(logged)
    await log_events(database, logged)
    await make_dead(
        database, letter(follower, "emails", reason="no such shopper", correlation_id=logged.id)
    )
    shown = await command_line.run("webhooks", "show", logged.id)
    assert shown.out.count("no such shopper") == 1


async def test_a_message_that_was_given_up_is_shown_with_who_did_it(
    command_line: CommandLine, database: Database
) -> None:
    logged = event()
    await log_events(database, logged)
    dead = letter_of(logged)
    await make_dead(database, dead)
    await give_up(database, dead)
    shown = await command_line.run("webhooks", "show", logged.id)
    assert "status:   given-up\n" in shown.out
    assert f"given up  letter {dead.id} of webhooks, by cli:bob at " in shown.out
    assert " UTC: no such order\n" in shown.out


async def test_where_nothing_follows_the_reason_is_shown(
    command_line: CommandLine, database: Database
) -> None:
    body = b'{"entity":"event","event":"invoice.paid","contains":[],"payload":{}}'
    known = event(1, source="razorpay", event_type="invoice.paid", body=body)
    # A made-up source is not configured.
    unknown, unreadable = event(2), event(3, source="razorpay", body=b"odd=")
    await log_events(database, known, unknown, unreadable)
    for row, why in (
        (known, "couponflow does not act on what it tells (razorpay invoice.paid)"),
        (unknown, "no source mailer is configured here"),
        (unreadable, "its source cannot read it: "),
    ):
        shown = await command_line.run("webhooks", "show", row.id)
        assert shown.out.count("no message follows from it: ") == 1
        assert f"no message follows from it: {why}" in shown.out


async def test_a_body_that_was_cut_is_not_said_to_be_no_json(
    command_line: CommandLine, database: Database
) -> None:
    cut = event(verdict="stale", body=b'{"a":"' + b"x" * 250)
    await log_events(database, cut)
    async with database.connection() as connection:
        await connection.execute("update webhook_logs set body_bytes = 4096")
    shown = await command_line.run("webhooks", "show", cut.id)
    assert "(refused, so only the first 256 of 4,096 bytes are kept; --reveal shows them)" in (
        shown.out
    )
    assert "neither JSON" not in shown.out
    revealed = await command_line.run("webhooks", "show", cut.id, "--reveal")
    assert "(refused, so only the first 256 of 4,096 bytes are kept)\n" in revealed.out
    assert '{"a":"xxx' in revealed.out


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
    table, _, _ = ended.out.partition("3 events")
    assert max(map(len, table.splitlines())) <= 80
    assert "3 events match.\n2 replayed, 0 refused, 1 skipped\n" in ended.out
    assert f"  {logged['waiting'].id} skipped: it is on its way already\n" in ended.out
    assert await replayed_ids(database) == [logged["processed"].id]
    assert {action for _, action in await rows_of(database.url, AUDIT)} == {
        *("webhooks.replay", "dead_letters.replay")
    }
    again = await command_line.run("webhooks", "replay", "--all", "--yes", "--json")
    assert again.code == 1
    assert again.json()["matching"]["total"] == 3
    assert again.json()["report"]["skipped"] == 3


async def test_ids_that_no_event_has_are_named(
    command_line: CommandLine, database: Database, logged: dict[str, LoggedRow]
) -> None:
    ids = (logged["processed"].id, UNKNOWN_ID)
    dry = await command_line.run("webhooks", "replay", "--dry-run", *ids)
    told = f"1 event matches.\nno event has the id {UNKNOWN_ID}\n"
    assert (dry.code, dry.out.endswith(told)) == (0, True)
    ended = await command_line.run("webhooks", "replay", "--yes", "--json", *ids)
    assert ended.json()["matching"]["not_found"] == [UNKNOWN_ID]
    assert ended.json()["report"]["not_found"] == [UNKNOWN_ID]
    assert ended.json()["report"]["replayed"] == 1


async def test_what_was_given_up_is_replayed_only_if_it_is_named(
    command_line: CommandLine, database: Database
) -> None:
    logged = event()
    await log_events(database, logged)
    dead = letter_of(logged)
    await make_dead(database, dead)
    await give_up(database, dead)
    window = await command_line.run("webhooks", "replay", "--source", "mailer", "--yes")
    assert (window.code, window.out) == (0, "No events match.\n")
    every = await command_line.run("webhooks", "replay", "--all", "--yes")
    assert (every.code, every.out) == (0, "No events match.\n")
    by_status = await command_line.run("webhooks", "replay", "--status", "given-up", "--yes")
    assert by_status.code == 1
    assert "refused: an operator gave it up; a replay that names its id" in by_status.out
    assert await replayed_ids(database) == []
    named = await command_line.run("webhooks", "replay", "--yes", logged.id)
    assert (named.code, "given-up" in named.out) == (0, True)
    assert "1 of them had been given up by an operator\n" in named.out
    assert await replayed_ids(database) == [logged.id]


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
            "not_found": [],
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
        (["--yes", "--source", "razorpey"], "no source is called 'razorpey'"),
        (["--yes", "--source", "razorpey"], " razorpay, sendgrid, "),
        (["--yes", "evt_1"], "'evt_1' is no id of an event, which is a UUID"),
        (["--yes", "--event-id", ""], "no sender calls an event by an empty text"),
        (["--yes", "--since", "2h", "--until", "3h"], "the end must be after the beginning"),
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


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--source", "razorpey"], "no source is called 'razorpey'"),
        (["evt_1"], "'evt_1' is no id of an event"),
        (["--since", "2h", "--until", "3h"], "the end must be after the beginning"),
        (["--cursor", "x"], "--cursor"),
    ],
)
async def test_a_list_of_what_cannot_be_meant_is_exit_code_2(
    command_line: CommandLine, database: Database, options: list[str], text: str
) -> None:
    ended = await command_line.run("webhooks", "list", *options)
    assert (ended.code, ended.out) == (2, "")
    assert text in ended.err


async def test_a_source_that_is_gone_is_known_by_what_it_sent(
    command_line: CommandLine, database: Database
) -> None:
    await log_events(database, event(source="generic/closed"))
    listed = await command_line.run("webhooks", "list", "--source", "generic/closed", "--json")
    assert len(listed.json()["items"]) == 1
    dry = await command_line.run("webhooks", "replay", "--source", "generic/closed", "--dry-run")
    assert dry.code == 0


async def test_the_help_says_what_every_status_means(command_line: CommandLine) -> None:
    for command in ("list", "replay"):
        ended = await command_line.run("webhooks", command, "--help")
        text = " ".join(ended.out.split())
        assert all(f"{status}: " in text for status in get_args(EventStatus))
    assert "[outbox] done_days" in text


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
    assert "Replay 1 event? [y/N]" in ended.err
    assert ("nothing was changed" in ended.err) == (code == 1)
    assert len(await replayed_ids(database)) == 1 - code
