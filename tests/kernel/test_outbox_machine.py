"""The outbox against a model of a few lines, on real PostgreSQL, whatever the order of events."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Literal, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from psycopg import AsyncConnection

from couponflow.kernel import outbox_rows
from couponflow.kernel.database_connection import Connection, JsonByMsgspec
from couponflow.kernel.outbox import publish
from couponflow.kernel.outbox_rows import PutBack, Token
from tests.kernel.letters import dead_email
from tests.kernel.outboxes import CHANNEL, email, message_id

T = TypeVar("T")
Place = Literal["waiting", "leased", "streamed", "begun", "done", "dead"]
FIRST_ID = message_id(0)

WHERE = """
select id::text, case when begun then 'begun' when owner is not null then 'leased'
                      when stream_entry is not null then 'streamed' else 'waiting' end,
       owner::text, attempts, handovers, lapsed
from outbox
union all select message_id::text, outcome, null, null, null, null from processed_messages
union all select message_id, 'dead', null, null, null, null from dead_letters
"""


@dataclass
class Modelled:
    """What is to be known of one message."""

    place: Place = "waiting"
    owner: str | None = None
    attempts: int = 0
    handovers: int = 0
    lapsed: bool = False

    def move(self, place: Place, owner: str | None = None) -> None:
        self.place, self.owner = place, owner


class OutboxMachine(RuleBasedStateMachine):
    """Two living workers at any time; tokens are kept and used again when they are stale."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.connection: Connection = self.run(self.connect())
        self.model: dict[str, Modelled] = {}
        self.tokens: list[Token] = []
        self.workers: list[str] = []
        self.born = 0
        for _ in range(2):
            self.bear()
        self.publish_some(4)

    def run(self, what: Coroutine[object, object, T]) -> T:
        return self.runner.run(what)

    async def connect(self) -> Connection:
        connection = await AsyncConnection.connect(
            self.url, autocommit=True, context=JsonByMsgspec()
        )
        await connection.execute("truncate outbox, processed_messages, dead_letters, workers")
        return connection

    def teardown(self) -> None:
        self.run(self.connection.close())
        self.runner.close()

    def bear(self) -> None:
        self.born += 1
        worker = f"01920000-0000-7000-b000-{self.born:012x}"
        self.workers.append(worker)
        query = (
            "insert into workers (id, name, roles, version, lease_until)"
            " values (%s, 'w', '{}', '1', now() + interval '1 hour')"
        )
        self.run(self.connection.execute(query, [worker]))

    def is_current(self, token: Token, *places: Place) -> bool:
        known = self.model[token.message_id]
        return known.handovers == token.handover and known.place in places

    def token(self, data: st.DataObject) -> Token:
        """One that still holds, where there is one, as often as any other."""
        held = [
            each for each in self.tokens if self.model[each.message_id].handovers == each.handover
        ]
        return data.draw(st.sampled_from(held or self.tokens) | st.sampled_from(self.tokens))

    @rule(count=st.integers(1, 3))
    def publish(self, count: int) -> None:
        self.publish_some(count)

    def publish_some(self, count: int) -> None:
        for _ in range(count):
            name = message_id(len(self.model) + 1)
            self.run(publish(self.connection, email(), message_id=name))
            self.model[name] = Modelled()

    @rule(worker=st.integers(0, 1), limit=st.integers(1, 3), begun=st.booleans())
    def claim(self, worker: int, limit: int, begun: bool) -> None:
        owner = self.workers[worker]
        rows = self.run(outbox_rows.claim(self.connection, CHANNEL, owner, limit, begun=begun))
        free = [n for n, m in self.model.items() if m.place == "waiting" and not m.lapsed]
        assert len(rows) == min(limit, len(free))
        self.take(owner, rows, begun)

    @rule(worker=st.integers(0, 1), begun=st.booleans())
    def claim_lapsed(self, worker: int, begun: bool) -> None:
        owner = self.workers[worker]
        rows = self.run(outbox_rows.claim_lapsed(self.connection, CHANNEL, owner, begun=begun))
        free = [n for n, m in self.model.items() if m.place == "waiting" and m.lapsed]
        busy = any(m.owner == owner and m.lapsed for m in self.model.values())
        assert len(rows) == (1 if free and not busy else 0)
        self.take(owner, rows, begun)

    def take(self, owner: str, rows: list[outbox_rows.OutboxRow], begun: bool) -> None:
        for row in rows:
            known = self.model[row.message_id]
            assert (known.place, known.lapsed) == ("waiting", row.lapsed)
            assert row.attempt == known.attempts + 1
            known.move("begun" if begun else "leased", owner)
            known.attempts += begun
            known.handovers += 1
            self.tokens.append(Token(row.message_id, row.handover))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def use_a_token(self, data: st.DataObject) -> None:
        """Most of what happens; a rule for each of these would leave too few of others."""
        uses = (self.stream, self.begin, self.finish, self.put_back, self.bury)
        for _ in range(6):
            data.draw(st.sampled_from(uses))(data)

    def stream(self, data: st.DataObject) -> None:
        token = self.token(data)
        self.run(outbox_rows.record_streamed(self.connection, [token], ["1-0"]))
        if self.is_current(token, "leased", "streamed", "waiting"):
            self.model[token.message_id].move("streamed")

    def begin(self, data: st.DataObject) -> None:
        token, again = self.token(data), data.draw(st.booleans())
        owner = data.draw(st.sampled_from(self.workers))
        known = self.model[token.message_id]
        anew = self.is_current(token, "leased", "streamed", "waiting")
        repeated = again and known.owner == owner and known.place == "begun"
        repeated = repeated and known.handovers == token.handover + 1
        begun = self.run(outbox_rows.begin(self.connection, owner, [token], [again]))
        if anew:
            known.move("begun", owner)
            known.attempts += 1
            known.handovers += 1
            self.tokens.append(Token(token.message_id, known.handovers))
        assert [*begun] == ([token.message_id] if anew or repeated else [])
        for found in begun.values():
            assert (found.attempt, found.handover) == (known.attempts, known.handovers)

    def finish(self, data: st.DataObject) -> None:
        token = self.token(data)
        finished = self.run(outbox_rows.finish(self.connection, [token], "done"))
        assert finished == ({token.message_id} if self.is_current(token, "begun") else set())
        if finished:
            self.model[token.message_id].move("done")

    def put_back(self, data: st.DataObject) -> None:
        token = self.token(data)
        forgiven, survived = data.draw(st.booleans()), data.draw(st.booleans())
        put = PutBack(token=token, forgiven=forgiven, survived=survived)
        current = self.is_current(token, "waiting", "leased", "streamed", "begun")
        returned = self.run(outbox_rows.put_back(self.connection, [put]))
        assert returned == ({token.message_id} if current else set())
        if current:
            known = self.model[token.message_id]
            known.attempts = max(0, known.attempts - forgiven)
            known.lapsed = known.lapsed and not survived
            known.handovers += 1
            known.move("waiting")

    def bury(self, data: st.DataObject) -> None:
        token = self.token(data)
        letter = dead_email(int(token.message_id[-12:], 16))
        buried = self.run(outbox_rows.bury_row(self.connection, token, letter))
        assert buried == self.is_current(token, "waiting", "leased", "streamed", "begun")
        if buried:
            self.model[token.message_id].move("dead")

    @rule(worker=st.integers(0, 1))
    def die(self, worker: int) -> None:
        dead = self.workers.pop(worker)
        query = "update workers set expired_at = now() where id = %s"
        self.run(self.connection.execute(query, [dead]))
        self.bear()

    @rule()
    def free_lapsed(self) -> None:
        lost = [
            m for m in self.model.values() if m.owner is not None and m.owner not in self.workers
        ]
        assert self.run(outbox_rows.free_lapsed(self.connection)) == len(lost)
        for known in lost:
            known.lapsed = known.lapsed or known.place == "begun"
            known.handovers += 1
            known.move("waiting")

    @rule(worker=st.integers(0, 1))
    def leave(self, worker: int) -> None:
        self.run(outbox_rows.release_all(self.connection, self.workers[worker]))
        for known in self.model.values():
            if known.owner == self.workers[worker]:
                known.attempts -= known.place == "begun"
                known.handovers += 1
                known.move("waiting")

    @rule(share=st.integers(1, 2))
    def lose_and_verify(self, share: int) -> None:
        page = self.run(outbox_rows.streamed_page(self.connection, CHANNEL, FIRST_ID, 100))
        streamed = sorted(n for n, m in self.model.items() if m.place == "streamed")
        assert [token.message_id for token, _ in page] == streamed
        lost = [token for token, _ in page][::share]
        assert self.run(outbox_rows.reset_lost(self.connection, lost)) == len(lost)
        for token in lost:
            self.model[token.message_id].move("waiting")
            self.model[token.message_id].handovers += 1

    @invariant()
    def every_message_is_in_one_place_and_it_is_the_models(self) -> None:
        rows = self.run(self.everywhere())
        found = {row[0]: row[1:] if row[1] not in ("done", "dead") else (row[1],) for row in rows}
        assert len(found) == len(rows)
        assert found == {
            name: (m.place, m.owner, m.attempts, m.handovers, m.lapsed)
            if m.place not in ("done", "dead")
            else (m.place,)
            for name, m in self.model.items()
        }

    async def everywhere(self) -> list[tuple[object, ...]]:
        return await (await self.connection.execute(WHERE.encode())).fetchall()


@pytest.fixture
def machine_url(database_url: str) -> str:
    OutboxMachine.url = database_url
    return database_url


def test_the_outbox_agrees_with_its_model(machine_url: str) -> None:
    assert machine_url
    OutboxMachine.TestCase.settings = settings(
        max_examples=60,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        # To shrink a failure takes minutes; take this out to do so.
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    OutboxMachine.TestCase("runTest").runTest()
