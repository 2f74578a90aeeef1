from collections.abc import Sequence
from contextlib import suppress
from typing import get_args

import anyio
import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from couponflow.kernel.attempt import AttemptOver
from couponflow.kernel.database import Database
from couponflow.kernel.handlers import DONE, MessageUnfit
from couponflow.messages import DeliveryState, EmailDeliveryReported
from couponflow.notify.delivery_reports import apply_report
from couponflow.notify.store import lock_notifications
from tests.kernel.outboxes import message_id, select, until_rows
from tests.notify.tellings import (
    EMAIL,
    FORGET_DONE,
    SMS,
    apply_together,
    attempt,
    email_report,
    handle,
    handle_together,
    run,
    sms_report,
)
from tests.samples import CLICKED_AT

pytestmark = pytest.mark.once

STATES: tuple[DeliveryState, ...] = get_args(DeliveryState)
ALL_STATES = ("queued", *STATES)
STATE = (
    "select state, state_reason, extract(epoch from state_changed_at)::float8 from notifications"
)
ALL_ROWS = (
    "select to_jsonb(n) - 'created_at' from notifications n"
    " union all select to_jsonb(r) from notification_reports r order by 1"
)
UNTOUCHED = ("delivered", "", None)
LOCK_WAITS = (
    "select count(*)::int from pg_stat_activity"
    " where datname = current_database() and wait_event_type = 'Lock'"
)


async def test_a_report_moves_what_the_mailbox_delivered(database: Database) -> None:
    await handle(database, EMAIL, 1)
    assert await select(database, STATE) == [UNTOUCHED]
    report = email_report(state="bounced", reason="no such box", occurred_at=CLICKED_AT + 0.25)
    assert await apply_report(report, attempt(database, report, 2)) == DONE
    assert await select(database, STATE) == [("bounced", "no such box", CLICKED_AT + 0.25)]
    assert await select(
        database,
        "select id::text, notification_id::text, provider, state, reason,"
        " extract(epoch from occurred_at)::float8 from notification_reports",
    ) == [
        (
            *(message_id(2), message_id(1), "sendgrid"),
            *("bounced", "no such box", CLICKED_AT + 0.25),
        )
    ]


async def test_what_is_less_far_is_kept_and_changes_nothing(database: Database) -> None:
    await handle(database, SMS, 1)
    await handle(database, sms_report(state="deferred", occurred_at=CLICKED_AT + 9), 2)
    assert await select(database, STATE) == [UNTOUCHED]
    assert await select(database, "select state from notification_reports") == [("deferred",)]


async def send(
    database: Database, *, channel: str, called: str, provider: str, number: int = 1
) -> None:
    """Keep a message as one that a provider took over; `number` makes its id."""
    async with database.connection() as connection:
        await connection.execute(
            "insert into notifications (id, channel, recipient, body, provider, state,"
            " provider_message_id, correlation_id) values (%s, %s, 'x', '', %s, 'sent', %s, '')",
            [message_id(number), channel, provider, called],
        )


async def test_a_notification_is_found_by_what_its_provider_calls_it(database: Database) -> None:
    await send(database, channel="sms", called="r-1", provider="msg91")
    report = sms_report(notification_id=None, provider_message_id="r-1", state="delivered")
    await handle(database, report, 2)
    assert await select(database, STATE) == [("delivered", "", CLICKED_AT)]


@pytest.mark.parametrize(
    "changes",
    [
        {"notification_id": message_id(9)},
        {"notification_id": message_id(9), "provider_message_id": "r-1"},
        {"notification_id": None, "provider_message_id": "r-9"},
        {"notification_id": None, "provider_message_id": "r-1", "provider": "other"},
        {"notification_id": None},
    ],
)
async def test_what_is_not_known_yet_is_waited_for(
    database: Database, changes: dict[str, str | None]
) -> None:
    await send(database, channel="emails", called="r-1", provider="sendgrid")
    with pytest.raises(MessageUnfit, match=r"^notification .* is not known yet$") as raised:
        await handle(database, email_report(**changes), 2)
    assert not raised.value.permanent
    # So that it is tried again.
    assert await select(database, "select count(*) from processed_messages") == [(0,)]


async def test_a_report_on_an_sms_is_none_on_an_email(database: Database) -> None:
    await handle(database, EMAIL, 1)
    with pytest.raises(MessageUnfit):
        await handle(database, sms_report(), 2)


async def test_a_provider_calls_no_two_notifications_the_same(database: Database) -> None:
    await send(database, channel="sms", called="r-1", provider="msg91")
    with pytest.raises(psycopg.errors.UniqueViolation):
        await run(
            database,
            b"insert into notifications (id, channel, recipient, body, provider, state,"
            b" provider_message_id, correlation_id)"
            b" values (gen_random_uuid(), 'sms', 'x', '', 'msg91', 'queued', 'r-1', '')",
        )


async def test_a_message_has_its_effect_once(database: Database) -> None:
    await handle(database, EMAIL, 1)
    await handle(database, email_report(), 2)
    with pytest.raises(AttemptOver):
        await handle(database, email_report(), 2)
    assert await select(database, "select count(*) from notification_reports") == [(1,)]


async def test_of_several_those_on_what_is_known_have_their_effect(database: Database) -> None:
    await handle(database, SMS, 1)
    await handle(database, EMAIL, 2)
    done = await handle_together(
        database,
        (email_report(notification_id=message_id(9), state="bounced"), 3),
        (email_report(notification_id=message_id(1), state="bounced"), 4),
        (email_report(notification_id=message_id(2), state="bounced", reason="no box"), 5),
        (email_report(notification_id=None, provider_message_id="r-9"), 6),
        (email_report(notification_id=message_id(2), state="sent"), 7),
    )
    assert done == [message_id(5), message_id(7)]
    assert await select(database, STATE + " order by id") == [
        UNTOUCHED,
        ("bounced", "no box", CLICKED_AT),
    ]
    assert await select(database, "select id::text from notification_reports order by id") == [
        (message_id(5),),
        (message_id(7),),
    ]


async def test_several_reports_that_come_again_change_nothing(database: Database) -> None:
    await handle(database, SMS, 1)
    await send(database, channel="sms", called="r-2", provider="msg91", number=2)
    named = sms_report(notification_id=None, provider_message_id="r-2", state="deferred")
    # Equal but for their ids, which decide.
    one, other = (sms_report(state="failed", reason=reason) for reason in ("one", "other"))
    batch = ((one, 3), (named, 4), (other, 5))
    assert len(await handle_together(database, *batch)) == 3
    kept = await select(database, ALL_ROWS)
    assert len(await handle_together(database, *reversed(batch))) == 3
    assert await select(database, ALL_ROWS) == kept
    assert await select(database, STATE + " order by id") == [
        ("failed", "other", CLICKED_AT),
        ("deferred", "", CLICKED_AT),
    ]


async def test_several_at_once_lock_notifications_in_one_order(database: Database) -> None:
    await handle(database, EMAIL, 1)
    await handle(database, EMAIL, 2)
    one = email_report(state="bounced")
    other = msgspec.structs.replace(one, notification_id=message_id(2))
    async with anyio.create_task_group() as tasks, database.transaction() as connection:
        await lock_notifications(connection, [one])
        tasks.start_soon(handle_together, database, (one, 3), (other, 4))
        await until_rows(database, LOCK_WAITS, (1,))
        # In the order of the batch it would wait for the one with the other locked, for which
        # those before it wait once they have the one.
        tasks.start_soon(handle_together, database, (other, 5), (one, 6))
        await until_rows(database, LOCK_WAITS, (2,))
    assert await select(
        database,
        "select notification_id::text, count(*) from notification_reports group by 1 order by 1",
    ) == [(message_id(1), 2), (message_id(2), 2)]


async def test_reports_at_the_same_time_wait_for_each_other(database: Database) -> None:
    await handle(database, EMAIL, 1)
    further = email_report(state="complained")
    async with anyio.create_task_group() as tasks, database.transaction() as connection:
        assert await lock_notifications(connection, [further]) == [message_id(1)]
        tasks.start_soon(handle, database, email_report(state="bounced"), 2)
        await until_rows(database, LOCK_WAITS, (1,))
        assert await apply_together(connection, (further, 3)) == [message_id(3)]
    assert await select(database, STATE) == [("complained", "", CLICKED_AT)]


REPORTS = st.builds(
    email_report,
    state=st.sampled_from(STATES),
    reason=st.sampled_from(["", "one", "two"]),
    # Few, so that several are of one moment and their ids decide.
    occurred_at=st.integers(0, 2).map(lambda second: CLICKED_AT + second),
)


def said_together(begun_as: str, reports: Sequence[EmailDeliveryReported]) -> tuple[object, ...]:
    """What a notification is by its reports, which are in the order of their ids."""
    _, top = max(
        enumerate(reports),
        key=lambda each: (STATES.index(each[1].state), each[1].occurred_at, each[0]),
    )
    if ALL_STATES.index(top.state) < ALL_STATES.index(begun_as):
        return begun_as, "", None
    return top.state, top.reason, top.occurred_at


async def test_any_order_of_any_reports_ends_the_same(database: Database) -> None:
    async def check(begun_as: str, reports: list[EmailDeliveryReported], order: list[int]) -> None:
        await run(database, b"truncate notifications, notification_reports, processed_messages")
        await handle(database, EMAIL, 1)
        await run(database, f"update notifications set state = '{begun_as}'".encode())
        for place in order:
            await run(database, FORGET_DONE)
            await handle(database, reports[place], place + 2)
        assert await select(database, STATE) == [said_together(begun_as, reports)]
        kept = await select(database, "select count(*) from notification_reports")
        assert kept == [(len(reports),)]

    @given(
        begun_as=st.sampled_from(ALL_STATES),
        reports=st.lists(REPORTS, min_size=1, max_size=5),
        data=st.data(),
    )
    @settings(max_examples=40, deadline=None)
    def holds(begun_as: str, reports: list[EmailDeliveryReported], data: st.DataObject) -> None:
        places = range(len(reports))
        doubled = data.draw(st.lists(st.sampled_from(places), max_size=2))
        order = data.draw(st.permutations([*places, *doubled]))
        anyio.from_thread.run(check, begun_as, reports, order)

    await anyio.to_thread.run_sync(holds)


async def test_several_end_as_they_do_one_by_one(database: Database) -> None:
    async def begin(begun_as: str) -> None:
        await run(database, b"truncate notifications, notification_reports, processed_messages")
        await handle(database, EMAIL, 1)
        await send(database, channel="emails", called="r-2", provider="sendgrid", number=2)
        await run(database, f"update notifications set state = '{begun_as}'".encode())

    async def check(
        begun_as: str, reports: list[EmailDeliveryReported], order: list[int], cut: int
    ) -> None:
        await begin(begun_as)
        known: set[str] = set()
        for place in order:
            await run(database, FORGET_DONE)
            with suppress(MessageUnfit):
                await handle(database, reports[place], place + 3)
                known.add(message_id(place + 3))
        alone = await select(database, ALL_ROWS)
        await begin(begun_as)
        done: set[str] = set()
        for batch in (order[:cut], order[cut:]):
            numbered = [(reports[place], place + 3) for place in batch]
            done.update(await handle_together(database, *numbered))
        assert done == known
        assert await select(database, ALL_ROWS) == alone

    names = st.sampled_from(
        [
            {"notification_id": message_id(1)},
            {"notification_id": message_id(2)},
            {"notification_id": None, "provider_message_id": "r-2"},
            {"notification_id": message_id(99)},
        ]
    )

    @given(
        begun_as=st.sampled_from(ALL_STATES),
        reports=st.lists(
            st.builds(lambda report, name: msgspec.structs.replace(report, **name), REPORTS, names),
            min_size=2,
            max_size=6,
        ),
        data=st.data(),
    )
    @settings(max_examples=25, deadline=None)
    def holds(begun_as: str, reports: list[EmailDeliveryReported], data: st.DataObject) -> None:
        places = range(len(reports))
        doubled = data.draw(st.lists(st.sampled_from(places), max_size=3))
        order = data.draw(st.permutations([*places, *doubled]))
        cut = data.draw(st.integers(0, len(order)))
        anyio.from_thread.run(check, begun_as, reports, order, cut)

    await anyio.to_thread.run_sync(holds)
