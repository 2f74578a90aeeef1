"""The journal's promise, put to the test: a real process, really killed."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from couponflow.config import JournalSettings
from couponflow.kernel.clock import ManualClock
from couponflow.kernel.journal import Journal, open_journal

APPEND_FOR_EVER = """
import itertools, os, sys
from pathlib import Path
from couponflow.config import JournalSettings
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.journal import open_journal

settings = JournalSettings(segment_bytes=65_536, max_bytes=1 << 30)
with open_journal(Path(sys.argv[1]), settings, SystemClock()) as journal:
    for number in itertools.count():
        journal.append(b"%010d" % number * 45)
        os.write(1, b"%010d" % number)
        if number % 100 == 0:
            journal.prepare_segment()
"""
NUMBER_BYTES = 10
SETTINGS = JournalSettings(segment_bytes=65_536, max_bytes=1 << 30)


def numbers_promised_until_killed(directory: Path, randomness: random.Random) -> int:
    """Let a process append, kill it at some moment, return how many appends it had told of."""
    with subprocess.Popen(
        [sys.executable, "-c", APPEND_FOR_EVER, str(directory)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        told = process.stdout.read(NUMBER_BYTES)
        deadline = time.monotonic() + randomness.uniform(0.0, 0.03)
        while time.monotonic() < deadline:
            told += process.stdout.read(NUMBER_BYTES * 50)
        process.kill()
        told += process.stdout.read()
    # The process was killed, it did not fail.
    assert process.returncode == -9
    return len(told) // NUMBER_BYTES


def replay(journal: Journal) -> list[bytes]:
    found: list[bytes] = []
    while (batch := journal.read(1000)) is not None:
        found += batch.payloads
    return found


@pytest.mark.parametrize("seed", range(20))
def test_every_append_told_of_before_a_kill_is_replayed(tmp_path: Path, seed: int) -> None:
    told = numbers_promised_until_killed(tmp_path, random.Random(seed))
    assert told > 0
    with open_journal(tmp_path, SETTINGS, ManualClock()) as journal:
        found = replay(journal)
        statistics = journal.statistics()
    # The kill may fall between an append and its telling, so there may be one more.
    assert len(found) in (told, told + 1)
    assert found == [b"%010d" % number * 45 for number in range(len(found))]
    assert statistics.set_aside == 0
    assert statistics.torn <= 1
