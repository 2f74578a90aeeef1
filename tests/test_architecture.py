"""ARCHITECTURE.md names a test for each promise: they have to exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(tests/[a-z_/]+\.py)(?:::([a-z0-9_]+))?`")


def test_every_named_test_exists() -> None:
    named = NAMED.findall((ROOT / "ARCHITECTURE.md").read_text())
    missing = [f"{file}::{name}" for file, name in named if not defines(ROOT / file, name)]

    assert len(named) >= 15
    assert missing == []


def defines(file: Path, name: str) -> bool:
    return file.is_file() and f"def {name}" in file.read_text()
