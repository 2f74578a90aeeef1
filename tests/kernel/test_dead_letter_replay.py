import signal
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE

import anyio
import msgspec
import psycopg
import pytest

from couponflow.kernel import dead_letter_replay
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letter_replay import (
    DiscardReport,
    LeftLetter,
    ReplayReport,
    discard,
    replay,
)
from couponflow.kernel.dead_letters import AttemptError, DeadLetter, LetterFilter
from couponflow.messages import CHANNELS
from tests.kernel.letters import (
    DIED_AT,
    IDS,
    bury_all,
    dead_email,
    email,
    failed,
    letter,
    message_id,
    set_dead_at,
)
from tests.samples import PATIENCE_SECONDS, POLL_SECONDS, rows_of

ACTOR = "cli:ann"
ALL = LetterFilter()
LETTERS = "select message_id from dead_letters order by dead_at, id"
OUTBOX = "select id::text from outbox order by id"
AUDIT = "select actor, action, subject, details from audit_logs order by id"
TABLES = [f"select * from {table} order by 1" for table in ("dead_letters", "outbox", "audit_logs")]
ROUNDS = 20
CRASHING = """
import anyio, sys
from couponflow.config import DatabaseSettings
from couponflow.kernel.crash_points import arm
from couponflow.kernel.database import open_database
from tests.kernel.test_dead_letter_replay import replay_all

async def main():
    async with open_database(sys.argv[1], DatabaseSettings()) as database:
        await replay_all(database)

arm(sys.argv[2])
anyio.run(main)
"""


async def replay_all(
    database: Database,
    letter_filter: LetterFilter = ALL,
    *,
    limit: int | None = None,
    expected: int | None = None,
) -> ReplayReport:
    return await replay(
        database,
        letter_filter,
        actor=ACTOR,
        channels_known=CHANNELS,
        clock=ManualClock(),
        ids=IDS,
        limit=limit,
        expected=expected,
    )


async def discard_all(
    database: Database, letter_filter: LetterFilter = ALL, *, expected: int | None = None
) -> DiscardReport:
    return await discard(
        database, letter_filter, actor=ACTOR, clock=ManualClock(), ids=IDS, expected=expected
    )


def all_of(count: int) -> ReplayReport:
    return ReplayReport(replayed=count, refused=0, skipped=0, left=[], more=False)


async def column(database: Database, query: str) -> list[object]:
    return [row[0] for row in await rows_of(database.url, query)]


async def tables(database: Database) -> list[list[tuple[object, ...]]]:
    return [await rows_of(database.url, query) for query in TABLES]


async def bury_emails(database: Database, numbers: range) -> list[DeadLetter]:
    letters = [dead_email(number) for number in numbers]
    await bury_all(database, *letters)
    return letters


async def somebody_waits_for_a_lock(database: Database) -> None:
    waiting = (
        "select 1 from pg_stat_activity"
        " where datname = current_database() and wait_event_type = 'Lock'"
    )
    with anyio.fail_after(PATIENCE_SECONDS):
        while not await rows_of(database.url, waiting):  # noqa: ASYNC110 - it sets no event
            await anyio.sleep(POLL_SECONDS)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letter_replay, "REPLAY_BATCH", 3)
    monkeypatch.setattr(dead_letter_replay, "DISCARD_BATCH", 3)


async def test_a_replayed_message_is_as_it_was_and_due_now(database: Database) -> None:
    await bury_all(
        database,
        dead_email(published_at=DIED_AT - 60, correlation_id="story", errors=[failed(1)]),
    )
    assert await replay_all(database) == all_of(1)
    assert await column(database, LETTERS) == []
    rows = await rows_of(
        database.url,
        "select id::text, channel, message, correlation_id, attempts, dedup_key, owner, begun,"
        " stream_entry, lapsed, extract(epoch from published_at)::float8, available_at <= now(),"
        " errors from outbox",
    )
    message = msgspec.json.decode(email())
    history = [
        {"attempt": 1, "at": DIED_AT + 1, "worker": "worker-1", "error": "refused"},
        {
            "attempt": 0,
            "at": ManualClock().now(),
            "worker": "",
            "error": "replayed by cli:ann; dead of: because",
        },
    ]
    assert rows == [
        (
            *(message_id(1), "emails", message, "story", 0, None, None, False, None, False),
            *(DIED_AT - 60, True, history),
        )
    ]


async def test_a_replay_is_written_into_the_audit_log(database: Database) -> None:
    (buried,) = await bury_emails(database, range(1, 2))
    await replay_all(database, LetterFilter(channel="emails"))
    assert await rows_of(database.url, AUDIT) == [
        (
            ACTOR,
            "dead_letters.replay",
            "emails",
            {
                "filter": {"channel": "emails"},
                "letters": [
                    {
                        "id": buried.id,
                        "channel": "emails",
                        "message_id": message_id(1),
                        "outbox_id": message_id(1),
                        "reason": "because",
                    }
                ],
            },
        )
    ]


async def test_a_message_without_an_id_of_ours_gets_one(database: Database) -> None:
    await bury_all(
        database,
        letter("1526919030474-55", "emails", message=email()),
        letter(message_id(2).upper(), "emails", message=email()),
    )
    assert await replay_all(database) == all_of(2)
    rows = await rows_of(database.url, "select id::text, correlation_id from outbox order by id")
    assert rows[0] == (message_id(2), message_id(2))
    assert str(rows[1][0])[14] == "7"
    assert rows[1][1] == rows[1][0]


async def test_a_message_that_dies_again_is_a_new_letter_with_its_whole_history(
    database: Database,
) -> None:
    await bury_all(database, dead_email(errors=[failed(1, "first life")]))
    await replay_all(database)
    (row,) = await rows_of(database.url, "delete from outbox returning errors, handovers")
    errors = msgspec.convert(row[0], list[AttemptError])
    again = dead_email(reason="worse", errors=[*errors, failed(1, "second life")])
    await bury_all(database, again)
    rows = await rows_of(database.url, "select id::text, reason from dead_letters")
    assert rows == [(again.id, "worse")]
    await replay_all(database)
    ((history, second),) = await rows_of(database.url, "select errors, handovers from outbox")
    assert [each.error for each in msgspec.convert(history, list[AttemptError])] == [
        "first life",
        "replayed by cli:ann; dead of: because",
        "second life",
        "replayed by cli:ann; dead of: worse",
    ]
    # Whoever still holds a token of the life before must find it too low.
    assert (row[1], second) == (20_000, 40_000)


async def test_relays_are_woken(database: Database, small_batches: None) -> None:
    await bury_emails(database, range(4))
    async with database.listen("couponflow_outbox") as notifications:
        await replay_all(database)
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await notifications.wait(timeout_seconds=PATIENCE_SECONDS)
    assert len(await column(database, OUTBOX)) == 4


@pytest.mark.parametrize(
    ("buried", "reason"),
    [
        (letter(message_id(1), "letters"), "this version of couponflow knows no channel 'letters'"),
        (letter(message_id(1), "emails", message=b"\0\xff"), "it is no message of the channel: "),
        (letter(message_id(1), "sms", message=email()), "it is no message of the channel: "),
    ],
)
async def test_what_would_only_die_again_is_refused_and_stays(
    database: Database, buried: DeadLetter, reason: str
) -> None:
    await bury_all(database, buried)
    before = await tables(database)
    report = await replay_all(database)
    (left,) = report.left
    assert (report.replayed, report.refused, report.skipped) == (0, 1, 0)
    assert (left.id, left.outcome) == (buried.id, "refused")
    assert left.reason.startswith(reason)
    assert await tables(database) == before


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (
            "insert into outbox (id, channel, message, correlation_id) values (%s, 'x', '1', '')",
            "its message is in the outbox already",
        ),
        (
            "insert into processed_messages (message_id, channel, outcome)"
            " values (%s, 'emails', 'done')",
            "its message was done already; discard the letter",
        ),
        (
            "insert into processed_messages (message_id, channel, outcome)"
            " values (%s, 'emails', 'discarded')",
            "its message was discarded by its handler; discard the letter",
        ),
    ],
)
async def test_a_message_on_its_way_or_done_is_skipped(
    database: Database, statement: str, reason: str
) -> None:
    buried, _ = await bury_emails(database, range(1, 3))
    async with database.connection() as connection:
        await connection.execute(statement.encode(), [message_id(1)])
    before = await column(database, OUTBOX)
    report = await replay_all(database)
    assert report.left == [LeftLetter(buried.id, "emails", message_id(1), "skipped", reason)]
    assert (report.replayed, report.refused, report.skipped) == (1, 0, 1)
    assert await column(database, LETTERS) == [message_id(1)]
    assert await column(database, OUTBOX) == [*before, message_id(2)]


async def test_a_message_that_comes_into_the_outbox_at_this_moment_is_not_written_twice(
    database: Database,
) -> None:
    await bury_emails(database, range(1, 3))
    reports: list[ReplayReport] = []

    async def work() -> None:
        reports.append(await replay_all(database))

    async with anyio.create_task_group() as group, database.transaction() as other:
        await other.execute(
            "insert into outbox (id, channel, message, correlation_id)"
            " values (%s, 'emails', '1', '')",
            [message_id(1)],
        )
        group.start_soon(work)
        await somebody_waits_for_a_lock(database)
    ((left,),) = [report.left for report in reports]
    assert left.outcome == "skipped"
    assert left.reason == "its message has come into the outbox meanwhile"
    rows = await rows_of(database.url, "select message, attempts from outbox order by id")
    assert rows == [(1, 0), (msgspec.json.decode(email(2)), 0)]
    assert await column(database, LETTERS) == [message_id(1)]


async def test_one_message_id_in_two_letters_is_written_once(database: Database) -> None:
    await bury_all(
        database,
        dead_email(1),
        letter(message_id(1).upper(), "emails", message=email()),
    )
    report = await replay_all(database)
    assert (report.replayed, report.skipped) == (1, 1)
    assert report.left[0].reason == "another letter has the same message id"
    assert await column(database, OUTBOX) == [message_id(1)]
    assert len(await column(database, LETTERS)) == 1


async def test_what_is_refused_does_not_stop_the_rest(
    database: Database, small_batches: None
) -> None:
    await bury_all(database, *(letter(f"bad {number}", "emails") for number in range(7)))
    await bury_emails(database, range(4))
    seen: list[int] = []
    report = await replay(
        database,
        ALL,
        actor=ACTOR,
        channels_known=CHANNELS,
        clock=ManualClock(),
        ids=IDS,
        progress=seen.append,
    )
    assert (report.replayed, report.refused, len(report.left)) == (4, 7, 7)
    assert seen == [3, 6, 9, 11]
    assert len(await column(database, LETTERS)) == 7
    assert len(await rows_of(database.url, AUDIT)) == 2


@pytest.mark.parametrize(("limit", "expected"), [(4, None), (None, 4), (9, 4), (4, 9)])
async def test_no_more_letters_than_agreed_are_touched_and_the_oldest_first(
    database: Database, small_batches: None, limit: int | None, expected: int | None
) -> None:
    letters = await bury_emails(database, range(6))
    for number, each in enumerate(letters):
        await set_dead_at(database, [each], DIED_AT - number)
    report = await replay_all(database, limit=limit, expected=expected)
    assert (report.replayed, report.more) == (4, True)
    assert await column(database, LETTERS) == [message_id(1), message_id(0)]
    assert await replay_all(database, expected=0) == msgspec.structs.replace(all_of(0), more=True)
    assert await replay_all(database, expected=2) == all_of(2)


async def test_letters_that_die_after_the_start_of_a_replay_are_not_chased(
    database: Database,
) -> None:
    first, second = await bury_emails(database, range(2))
    rows = await rows_of(database.url, "select extract(epoch from clock_timestamp())::float8")
    now = msgspec.convert(rows[0][0], float)
    await set_dead_at(database, [first], now)
    await set_dead_at(database, [second], now + 600)
    assert await replay_all(database) == all_of(1)
    assert await column(database, LETTERS) == [second.message_id]


async def test_replays_released_together_replay_each_letter_once(
    database: Database, small_batches: None
) -> None:
    for round_ in range(ROUNDS):
        numbers = range(round_ * 10, round_ * 10 + 10)
        await bury_emails(database, numbers)
        go = anyio.Event()
        reports: list[ReplayReport] = []

        async def work(go: anyio.Event, reports: list[ReplayReport]) -> None:
            await go.wait()
            reports.append(await replay_all(database))

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(work, go, reports)
            await anyio.wait_all_tasks_blocked()
            go.set()
        assert sum(report.replayed for report in reports) == 10
        assert [report.left for report in reports] == [[], []]
        assert await column(database, OUTBOX) == [message_id(n) for n in range(numbers.stop)]
        assert await column(database, LETTERS) == []
    assert await audited_ids(database) == await column(database, OUTBOX)


async def audited_ids(database: Database) -> list[object]:
    return await column(
        database,
        "select e ->> 'outbox_id' from audit_logs, jsonb_array_elements(details -> 'letters') e"
        " order by 1",
    )


async def test_a_letter_that_another_replay_has_is_left_to_it(database: Database) -> None:
    first, _ = await bury_emails(database, range(1, 3))
    async with database.transaction() as other:
        await other.execute("delete from dead_letters where id = %s", [first.id])
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await replay_all(database) == all_of(1)
        raise psycopg.Rollback(None)
    assert await column(database, LETTERS) == [message_id(1)]


@pytest.mark.parametrize(("visit", "kept"), [(1, 0), (2, 500)])
async def test_a_replay_killed_before_a_commit_is_whole_when_it_is_run_again(
    database: Database, visit: int, kept: int
) -> None:
    await bury_emails(database, range(501))
    with anyio.fail_after(PATIENCE_SECONDS):
        ended = await anyio.run_process(
            [sys.executable, "-c", CRASHING, database.url, f"dead_letters.replayed:{visit}"],
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    assert (ended.returncode, ended.stderr) == (-signal.SIGKILL, b"")
    assert len(await column(database, OUTBOX)) == kept
    assert await audited_ids(database) == await column(database, OUTBOX)
    # The server may take a moment to see that the client is gone, and holds its locks until then.
    replayed = kept
    with anyio.fail_after(PATIENCE_SECONDS):
        while replayed < 501:
            replayed += (await replay_all(database)).replayed
    assert len(await column(database, OUTBOX)) == 501
    assert await column(database, LETTERS) == []
    assert await audited_ids(database) == await column(database, OUTBOX)


async def test_a_discarded_letter_is_kept_whole_in_the_audit_log(database: Database) -> None:
    buried = dead_email(errors=[failed(1)], correlation_id="story", published_at=DIED_AT)
    await bury_all(database, buried, letter("other"))
    await set_dead_at(database, [buried], DIED_AT)
    report = await discard_all(database, LetterFilter(ids=(buried.id,)))
    assert report == DiscardReport(discarded=1, more=False)
    assert await column(database, LETTERS) == ["other"]
    assert await rows_of(database.url, AUDIT) == [
        (
            ACTOR,
            "dead_letters.discard",
            buried.id,
            {
                "letter": {
                    "id": buried.id,
                    "channel": "emails",
                    "message_id": message_id(1),
                    "message": msgspec.json.decode(email()),
                    "reason": "because",
                    "attempts": 3,
                    "correlation_id": "story",
                    "published_at": "2026-09-21T14:13:20Z",
                    "dead_at": "2026-09-21T14:13:20Z",
                    "errors": [msgspec.to_builtins(failed(1))],
                }
            },
        )
    ]


async def test_of_a_letter_larger_than_any_message_its_beginning_is_kept(
    database: Database,
) -> None:
    await bury_all(database, letter("large", message=b"x" * 1_000_100))
    await discard_all(database)
    ((kept, cut_from),) = await rows_of(
        database.url,
        "select length(details #>> '{letter,message}'),"
        " details #> '{letter,message_cut_from_characters}' from audit_logs",
    )
    assert (kept, cut_from) == (1_000_000, 1_000_102)


async def test_no_more_letters_than_agreed_are_discarded(
    database: Database, small_batches: None
) -> None:
    letters = await bury_emails(database, range(6))
    for number, each in enumerate(letters):
        await set_dead_at(database, [each], DIED_AT - number)
    assert await discard_all(database, expected=4) == DiscardReport(discarded=4, more=True)
    assert await column(database, LETTERS) == [message_id(1), message_id(0)]
    assert len(await rows_of(database.url, AUDIT)) == 4
    assert await discard_all(database, expected=2) == DiscardReport(discarded=2, more=False)


async def test_discards_released_together_discard_each_letter_once(
    database: Database, small_batches: None
) -> None:
    await bury_emails(database, range(40))
    discarded: list[int] = []

    async def work() -> None:
        discarded.append((await discard_all(database)).discarded)

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(work)
    assert sum(discarded) == 40
    assert await column(database, LETTERS) == []
    assert await column(database, "select distinct count(*) from audit_logs group by subject") == [
        1
    ]
