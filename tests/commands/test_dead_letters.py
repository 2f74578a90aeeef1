import os
import pty
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from couponflow.kernel.database import Database
from tests.commands.command_line import CommandLine
from tests.kernel.letters import (
    DIED_AT,
    bury_all,
    dead_email,
    email,
    failed,
    letter,
    message_id,
    set_dead_at,
)
from tests.samples import rows_of

LETTERS = "select message_id from dead_letters order by message_id"
OUTBOX = "select id::text from outbox order by id"
AUDIT = "select actor, action from audit_logs order by id"


@pytest.fixture
def command_line(tmp_path: Path, database_url: str) -> CommandLine:
    return CommandLine(tmp_path, database_url)


@contextmanager
def terminal_that_says(answer: bytes) -> Iterator[Path]:
    """A terminal on which somebody types the answer."""
    person, terminal = pty.openpty()
    typing = threading.Thread(target=os.write, args=(person, answer))
    try:
        typing.start()
        yield Path(os.ttyname(terminal))
    finally:
        typing.join()
        os.close(terminal)
        os.close(person)


async def ids_in(database: Database, query: str) -> list[object]:
    return [row[0] for row in await rows_of(database.url, query)]


async def bury_three(database: Database) -> None:
    await bury_all(
        database,
        dead_email(1, reason="timed [out]"),
        dead_email(2, reason="refused"),
        letter("odd", message=b"garbage", reason="ill-formed"),
    )


async def test_letters_are_listed_newest_first(
    command_line: CommandLine, database: Database
) -> None:
    old, new = dead_email(1, reason="timed [out]"), letter("odd")
    await bury_all(database, old, new)
    await set_dead_at(database, [old], DIED_AT)
    await set_dead_at(database, [new], DIED_AT + 1)
    shown = await command_line.run("dead-letters", "list")
    as_json = await command_line.run("dead-letters", "list", "--json")
    assert (shown.code, as_json.code) == (0, 0)
    headings, *lines = shown.out.splitlines()
    assert headings.split() == ["id", "channel", "type", "tries", "died"]
    assert [line.split()[0] for line in lines[::2]] == [new.id, old.id]
    assert lines[2].split()[1:] == ["emails", "email.v1", "3", "2026-09-21", "14:13:20"]
    assert lines[3] == "  timed [out]"
    assert as_json.json()["total"] == 2
    assert as_json.json()["items"][1] == {
        "id": old.id,
        "channel": "emails",
        "message_id": message_id(1),
        "message_type": "email.v1",
        "reason": "timed [out]",
        "attempts": 3,
        "correlation_id": "",
        "published_at": None,
        "dead_at": "2026-09-21T14:13:20Z",
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--channel", "emails"], [message_id(1), message_id(2)]),
        (["--type", "email.v1", "--reason", "REFUSED"], [message_id(2)]),
        (["--since", "1h"], [message_id(1), message_id(2), "odd"]),
        (["--until", "2020-01-01"], []),
        (["--since", "2020-01-01T00:00:00+05:30", "--reason", "ill"], ["odd"]),
        (["--correlation-id", "nobody"], []),
    ],
)
async def test_a_list_can_be_narrowed(
    command_line: CommandLine, database: Database, options: list[str], expected: list[str]
) -> None:
    await bury_three(database)
    ended = await command_line.run("dead-letters", "list", "--json", *options)
    assert sorted(item["message_id"] for item in ended.json()["items"]) == expected


async def test_a_list_can_be_read_in_80_columns(
    command_line: CommandLine, database: Database
) -> None:
    buried = [dead_email(number, reason="timed out " * 20) for number in (1, 2)]
    await bury_all(database, *buried)
    ended = await command_line.run("dead-letters", "list", COLUMNS="80")
    lines = ended.out.splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) == 80
    assert {line[:36] for line in lines[1::2]} == {letter.id for letter in buried}
    assert {line.split()[1] for line in lines[1::2]} == {"emails"}
    assert lines[2] == f"  {'timed out ' * 7}timed o\N{HORIZONTAL ELLIPSIS}"


async def test_a_list_says_how_many_it_does_not_show(
    command_line: CommandLine, database: Database
) -> None:
    nothing = await command_line.run("dead-letters", "list")
    assert nothing.out == "No dead letters match.\n"
    await bury_three(database)
    ended = await command_line.run("dead-letters", "list", "--limit", "1")
    assert ended.out.endswith("... and 2 more; raise --limit\n")


async def test_a_letter_is_shown_with_the_error_of_every_attempt(
    command_line: CommandLine, database: Database
) -> None:
    buried = dead_email(
        correlation_id="story", errors=[failed(1), failed(2, "[timed] out")], published_at=DIED_AT
    )
    await bury_all(database, buried)
    shown = await command_line.run("dead-letters", "show", buried.id)
    as_json = await command_line.run("dead-letters", "show", buried.message_id, "--json")
    assert (shown.code, as_json.code) == (0, 0)
    assert "attempt 1 at 2026-09-21 14:13:21 by worker-1: refused\n" in shown.out
    assert "attempt 2 at 2026-09-21 14:13:22 by worker-1: [timed] out\n" in shown.out
    assert "correlation: story\n" in shown.out
    assert '"subject": "Hello"' in shown.out
    assert as_json.json()["message"] == msgspec.json.decode(email())
    assert [error["error"] for error in as_json.json()["errors"]] == ["refused", "[timed] out"]


async def test_a_letter_that_is_not_there_is_exit_code_1(
    command_line: CommandLine, database: Database
) -> None:
    for action in (["show"], ["replay", "--yes"], ["discard", "--yes"]):
        ended = await command_line.run("dead-letters", *action, "nobody")
        assert (ended.code, ended.out) == (1, "")
        assert "no dead letter" in ended.err


async def test_a_replay_says_what_matched_and_what_became_of_it(
    command_line: CommandLine, database: Database
) -> None:
    await bury_three(database)
    ended = await command_line.run("dead-letters", "replay", "--all", "--yes")
    assert (ended.code, ended.err) == (0, "")
    assert "timed [out]" in ended.out
    assert "3 dead letters match.\n2 replayed, 1 refused, 0 skipped\n" in ended.out
    assert "refused: it is no message of the channel" in ended.out
    assert await ids_in(database, OUTBOX) == [message_id(1), message_id(2)]
    assert await ids_in(database, LETTERS) == ["odd"]
    ((actor, action),) = await rows_of(database.url, AUDIT)
    assert (str(actor)[:4], action) == ("cli:", "dead_letters.replay")
    again = await command_line.run("dead-letters", "replay", "--all", "--yes", "--json")
    assert again.code == 1
    assert again.json()["matching"]["total"] == 1
    assert again.json()["report"]["refused"] == 1


async def test_a_discard_by_id_leaves_the_others(
    command_line: CommandLine, database: Database
) -> None:
    await bury_three(database)
    ended = await command_line.run("dead-letters", "discard", "odd", message_id(1), "--yes")
    assert ended.code == 0
    assert ended.out.endswith("2 dead letters match.\n2 discarded; audit_logs keeps them\n")
    assert await ids_in(database, LETTERS) == [message_id(2)]
    actions = [row[1] for row in await rows_of(database.url, AUDIT)]
    assert actions == ["dead_letters.discard"] * 2


@pytest.mark.parametrize("action", ["replay", "discard"])
async def test_a_dry_run_changes_nothing(
    command_line: CommandLine, database: Database, action: str
) -> None:
    await bury_three(database)
    ended = await command_line.run(
        "dead-letters", action, "--channel", "emails", "--dry-run", "--json"
    )
    assert ended.code == 0
    assert ended.json() == {
        "dry_run": True,
        "matching": {
            "total": 2,
            "groups": [
                {"channel": "emails", "reason": "refused", "letters": 1},
                {"channel": "emails", "reason": "timed [out]", "letters": 1},
            ],
        },
        "report": None,
    }
    assert await rows_of(database.url, AUDIT) == []
    assert len(await ids_in(database, LETTERS)) == 3


@pytest.mark.parametrize("action", ["replay", "discard"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--all"], "--yes"),
        (["odd"], "--yes"),
        (["--yes"], "give ids or filters"),
        (["--yes", "--all", "odd"], "--all alone"),
        (["--yes", "--since", "yesterday"], "'yesterday' is no moment"),
        (["--yes", "--until", "999999w"], "'999999w' is no moment"),
    ],
)
async def test_wrong_usage_is_exit_code_2_and_changes_nothing(
    command_line: CommandLine, database: Database, action: str, options: list[str], text: str
) -> None:
    await bury_three(database)
    ended = await command_line.run("dead-letters", action, *options)
    assert (ended.code, ended.out) == (2, "")
    assert text in ended.err
    assert await rows_of(database.url, AUDIT) == []
    assert len(await ids_in(database, LETTERS)) == 3


@pytest.mark.parametrize(("answer", "code", "left"), [(b"y\n", 0, ["odd"]), (b"\n", 1, None)])
async def test_on_a_terminal_it_asks_first(
    command_line: CommandLine,
    database: Database,
    answer: bytes,
    code: int,
    left: list[str] | None,
) -> None:
    await bury_three(database)
    before = await ids_in(database, LETTERS)
    with terminal_that_says(answer) as terminal:
        ended = await command_line.run_reading(
            terminal, "dead-letters", "replay", "--channel", "emails"
        )
    assert ended.code == code
    assert "Replay 2 dead letters? [y/N]" in ended.err
    assert ("nothing was changed" in ended.err) == (code == 1)
    assert await ids_in(database, LETTERS) == (before if left is None else left)


async def test_a_schema_that_is_not_current_is_refused(
    tmp_path: Path, empty_database_url: str
) -> None:
    ended = await CommandLine(tmp_path, empty_database_url).run("dead-letters", "list")
    assert (ended.code, ended.out) == (1, "")
    assert "couponflow migrate" in ended.err
