"""The peers' packages, in environments of their own that the bench makes and couponflow never sees.

They lie in `.peers/` and are made again whenever the pinned versions change.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.redirect.processes import ProgramMissing

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = HERE / "peers"
PLACE = HERE / ".peers"
REQUIREMENTS = SOURCES / "requirements.txt"
NODE_FILES = ("package.json", "package-lock.json", ".npmrc")
INSTALLERS = {"node": ["npm"], "bun": ["bun"]}
INSTALL_SECONDS = 600.0


class InstallFailed(Exception):
    """A peer's packages could not be installed; the end of the installer's output is below."""


@dataclass(frozen=True, slots=True)
class JavaScript:
    """What runs JavaScript here, and what it was told."""

    name: str
    program: str
    environment: dict[str, str]


def python_environment() -> Path:
    """Return the Python that has the Python peers, making it first where needed."""
    place = PLACE / "python"
    python = place / "bin" / "python"
    stamp = _stamp([REQUIREMENTS], sys.version)
    if not _is_current(place, stamp):
        shutil.rmtree(place, ignore_errors=True)
        _install([sys.executable, "-m", "venv", str(place)], HERE)
        _install([str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)], HERE)
        (place / "stamp").write_text(stamp)
    return python


def javascript() -> JavaScript:
    """Return Node, or Bun where there is no Node, with BullMQ in reach, installed where needed."""
    name = next((name for name in ("node", "bun") if shutil.which(name)), None)
    if name is None:
        raise ProgramMissing("node is not installed. Install it with: apt-get install nodejs npm")
    place = PLACE / "node"
    files = [SOURCES / file for file in NODE_FILES]
    stamp = _stamp(files, name)
    if not _is_current(place, stamp):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for file in files:
            shutil.copy(file, place)
        # Not `npm ci`: that wants every platform's binaries in the lock file.
        _install([*INSTALLERS[name], "install", "--no-save", "--ignore-scripts"], place)
        (place / "stamp").write_text(stamp)
    modules = {"NODE_PATH": str(place / "node_modules")}
    return JavaScript(name, name, {**os.environ, **modules})


def peer_versions() -> dict[str, str]:
    """The versions of the peers, as they are pinned, and of what runs them."""
    pinned = re.findall(r"^(arq|procrastinate|saq)\b.*==(\S+)$", REQUIREMENTS.read_text(), re.M)
    packages = json.loads((SOURCES / "package.json").read_text())["dependencies"]
    versions = {**dict(pinned), **packages}
    runner = javascript()
    said = subprocess.run(
        [runner.program, "--version"], check=True, capture_output=True, text=True
    ).stdout
    return {**versions, runner.name: said.strip().removeprefix("v")}


def python_path() -> dict[str, str]:
    """The environment in which a Python peer finds the harness."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _stamp(files: Sequence[Path], runner: str) -> str:
    digest = hashlib.sha256(runner.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _is_current(place: Path, stamp: str) -> bool:
    file = place / "stamp"
    return file.exists() and file.read_text() == stamp


def _install(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_SECONDS,
        )
    except FileNotFoundError as error:
        raise ProgramMissing(f"{command[0]} is not installed: it installs the peers") from error
    except subprocess.TimeoutExpired as error:
        raise InstallFailed(f"{' '.join(command)} took over {INSTALL_SECONDS:.0f} s") from error
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-15:])
        raise InstallFailed(f"{' '.join(command)} ended with {done.returncode}:\n{end}")
