"""Where journal records go that are no clicks: nothing is thrown away that was once accepted."""

import os
from hashlib import sha256
from pathlib import Path


def file_name(payload: bytes) -> str:
    """The name a record is kept under: of its content, so that a replay keeps it once."""
    return f"record-{sha256(payload).hexdigest()[:32]}.bytes"


def keep(folder: Path, payload: bytes) -> Path:
    """Write a record, whole and synced, into `folder`; raises `OSError` when the disk refuses."""
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / file_name(payload)
    if path.exists():
        return path
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path
