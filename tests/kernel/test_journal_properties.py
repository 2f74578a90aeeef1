"""Any sequence of things that can happen to a journal, held against a list."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from couponflow.kernel.journal import (
    Position,
)
from tests.kernel.journal_driver import (
    opened,
)


class JournalMachine(RuleBasedStateMachine):
    """Held against a list: what was appended and not handed over is read again, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.resources = contextlib.ExitStack()
        self.root = Path(self.resources.enter_context(tempfile.TemporaryDirectory()))
        self.folders = 0
        self.directory = self.root / "0"
        self.appended: list[bytes] = []
        self.handed_over = 0
        self.read = 0
        self.ends: list[tuple[int, Position]] = []
        self.open: contextlib.ExitStack = contextlib.ExitStack()

    @initialize()
    def start(self) -> None:
        self.open = contextlib.ExitStack()
        self.journal = self.open.enter_context(opened(self.directory))
        self.read = self.handed_over
        self.ends = []

    @rule(size=st.integers(min_value=1, max_value=300), count=st.integers(1, 4))
    def append(self, size: int, count: int) -> None:
        for _ in range(count):
            record = (b"%d " % len(self.appended)).ljust(size, b".")
            self.journal.append(record)
            self.appended.append(record)

    @rule(max_records=st.integers(min_value=1, max_value=6))
    def read_some(self, max_records: int) -> None:
        batch = self.journal.read(max_records)
        expected = self.appended[self.read : self.read + max_records]
        assert ([] if batch is None else batch.payloads) == expected
        if batch is not None:
            self.read += len(batch.payloads)
            self.ends.append((self.read, batch.end))

    @precondition(lambda self: self.ends)
    @rule(data=st.data())
    def hand_over(self, data: st.DataObject) -> None:
        count, end = data.draw(st.sampled_from(self.ends))
        self.journal.checkpoint(end)
        self.handed_over = max(self.handed_over, count)
        self.read = max(self.read, self.handed_over)

    @rule()
    def rewind(self) -> None:
        self.journal.rewind()
        self.read = self.handed_over

    @rule()
    def prepare(self) -> None:
        self.journal.prepare_segment()

    @rule()
    def sync(self) -> None:
        self.journal.sync()

    @rule()
    def close_and_open(self) -> None:
        self.open.close()
        self.start()

    @rule()
    def kill_and_open(self) -> None:
        """What a killed process leaves is what its files hold at that moment."""
        self.folders += 1
        killed = self.root / str(self.folders)
        shutil.copytree(self.directory, killed)
        self.open.close()
        self.directory = killed
        self.start()

    @invariant()
    def the_backlog_is_never_denied(self) -> None:
        if self.handed_over < len(self.appended):
            assert self.journal.backlog

    @invariant()
    def nothing_was_found_wrong(self) -> None:
        assert self.journal.findings == []

    def teardown(self) -> None:
        self.open.close()
        self.resources.close()


def test_any_sequence_of_events_loses_and_invents_nothing() -> None:
    run_state_machine_as_test(
        JournalMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
