import getpass
import json
from pathlib import Path

import pytest

from couponflow.messages import CHANNELS
from tests.commands.command_line import CommandLine
from tests.samples import rows_of

EMAIL = {"to": "mira@example.com", "subject": "Hello", "text": "Your cashback is here."}
EMAIL_JSON = json.dumps(EMAIL)
ACTOR = f"cli:{getpass.getuser()}"
OUTBOX = "select channel, message->>'type', message->>'to', dedup_key from outbox"
AUDIT = "select actor, action, subject, details from audit_logs"
EVERYTHING = "select count(*) from outbox union all select count(*) from audit_logs"


@pytest.fixture
def command_line(tmp_path: Path, database_url: str) -> CommandLine:
    return CommandLine(tmp_path, database_url)


async def test_a_message_is_pushed_without_a_daemon(
    command_line: CommandLine, database_url: str
) -> None:
    ended = await command_line.run("queue", "push", "emails", EMAIL_JSON)
    assert (ended.code, ended.err) == (0, "")
    [(message_id, correlation_id)] = await rows_of(
        database_url, "select id::text, correlation_id from outbox"
    )
    assert (ended.out.strip(), correlation_id) == (message_id, message_id)
    assert await rows_of(database_url, OUTBOX) == [("emails", "email.v1", EMAIL["to"], None)]
    assert await rows_of(database_url, AUDIT) == [
        (ACTOR, "channel.push", "emails", {"message_id": message_id})
    ]


async def test_a_message_comes_from_standard_input_for_later(
    command_line: CommandLine, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "message.json").write_text(EMAIL_JSON)
    arguments = ("queue", "push", "emails", "-", "--json")
    options = ("--at", "2100-01-31T18:30:00Z", "--dedup-key", "welcome:7")
    first = await command_line.run_reading(tmp_path / "message.json", *arguments, *options)
    again = await command_line.run_reading(tmp_path / "message.json", *arguments, *options)
    assert (first.code, again.code) == (0, 0)
    assert again.json() == {**first.json(), "deduplicated": True}
    assert await rows_of(
        database_url, "select dedup_key, extract(epoch from available_at)::bigint from outbox"
    ) == [("welcome:7", 4_105_103_400)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("fax", EMAIL_JSON),
            f"there is no channel 'fax'; there are: {', '.join(sorted(CHANNELS))}",
        ),
        (("emails", "{"), "not JSON"),
        (("emails", "{}"), "`$.to`"),
        (("emails", '{"to": "a@b", "subject": "s", "text": "t", "cc": 1}'), "`$.cc`"),
        (("emails", EMAIL_JSON, "--at", "tomorrow"), "2030-01-31T18:30:00Z"),
        (("emails", EMAIL_JSON, "--dedup-key", ""), "--dedup-key must have"),
        (("emails",), "--lines"),
        (("emails", EMAIL_JSON, "--lines"), "standard input"),
        (("emails", "--lines", "--dedup-key", "x"), "--dedup-key"),
    ],
)
async def test_what_cannot_be_pushed_is_wrong_usage(
    command_line: CommandLine, database_url: str, arguments: tuple[str, ...], told: str
) -> None:
    ended = await command_line.run("queue", "push", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err
    assert "Traceback" not in ended.err
    assert await rows_of(database_url, EVERYTHING) == [(0,), (0,)]


async def test_many_messages_are_pushed_from_lines(
    command_line: CommandLine, database_url: str, tmp_path: Path
) -> None:
    lines = [json.dumps({**EMAIL, "to": f"{number}@example.com"}) for number in range(1_203)]
    (tmp_path / "lines").write_text("\n\n".join(lines) + "\n")
    ended = await command_line.run_reading(tmp_path / "lines", "queue", "push", "emails", "--lines")
    assert (ended.code, ended.out) == (0, "1,203 messages pushed\n")
    assert await rows_of(
        database_url, "select count(*), count(distinct message->>'to') from outbox"
    ) == [(1_203, 1_203)]
    recorded = await rows_of(database_url, f"{AUDIT} order by recorded_at, id")
    assert [row[:3] for row in recorded] == [(ACTOR, "channel.push", "emails")] * 5
    # A blank line lies between any two messages, so a batch of 500 lines has 250.
    ids = "select jsonb_array_length(details->'message_ids') from audit_logs order by 1"
    assert await rows_of(database_url, ids) == [(203,), (250,), (250,), (250,), (250,)]
    assert await rows_of(
        database_url,
        "select count(distinct o.id) from outbox o join audit_logs"
        " on details->'message_ids' @> to_jsonb(o.id::text)",
    ) == [(1_203,)]


async def test_one_bad_line_and_nothing_is_pushed(
    command_line: CommandLine, database_url: str, tmp_path: Path
) -> None:
    lines = [EMAIL_JSON] * 700
    lines[600] = "{}"
    lines[601] = "nonsense"
    (tmp_path / "lines").write_text("\n".join(lines))
    arguments = ("queue", "push", "emails", "--lines")
    ended = await command_line.run_reading(tmp_path / "lines", *arguments)
    as_json = await command_line.run_reading(tmp_path / "lines", *arguments, "--json")
    assert (ended.code, ended.out, as_json.code) == (1, "", 1)
    assert "line 601: " in ended.err
    assert "Nothing was pushed" in ended.err
    report = as_json.json()
    assert (report["pushed"], report["bad"]) == (0, 2)
    assert [bad["line"] for bad in report["first_bad"]] == [601, 602]
    assert await rows_of(database_url, EVERYTHING) == [(0,), (0,)]


async def test_no_lines_are_no_work(
    command_line: CommandLine, database_url: str, tmp_path: Path
) -> None:
    (tmp_path / "lines").write_text("\n")
    ended = await command_line.run_reading(tmp_path / "lines", "queue", "push", "sms", "--lines")
    assert (ended.code, ended.out) == (0, "0 messages pushed\n")
    assert await rows_of(database_url, EVERYTHING) == [(0,), (0,)]
