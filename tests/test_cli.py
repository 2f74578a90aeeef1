import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

from couponflow import __version__
from couponflow.cli import main

COMMANDS = [
    "run",
    "check",
    "migrate",
    "merchants import",
    "offers import",
    "users import",
    "queue stats",
    "audit",
]


def test_the_version_is_told() -> None:
    result = CliRunner().invoke(main, ["--version"], prog_name="couponflow")
    assert (result.exit_code, result.output) == (0, f"couponflow, version {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(command: str, flag: str) -> None:
    result = CliRunner().invoke(main, [*command.split(), flag])
    assert result.exit_code == 0
    assert f"Usage: main {command}" in result.output


def test_help_names_the_columns_of_a_file() -> None:
    help_of = {
        kind: " ".join(CliRunner().invoke(main, [kind, "import", "-h"]).output.split())
        for kind in ("merchants", "offers", "users")
    }
    assert (
        "slug,name,network,tracking_template,fallback_url,cashback_percent" in help_of["merchants"]
    )
    assert "offer_uuid,merchant_slug,title,url,starts_at,expires_at,active" in help_of["offers"]
    assert "user_uuid,email,mobile,name" in help_of["users"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["run", "--fly"],
        ["run", "--traffic"],
        ["run", "--config", "nowhere.toml"],
        ["--config", "nowhere.toml", "check"],
        ["offers", "import"],
        ["offers", "import", "nowhere.csv"],
        ["queue"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.exception.__class__) == (2, SystemExit)
    assert "Usage:" in result.output


def test_the_module_is_the_command() -> None:
    assert import_module("couponflow.__main__").main is main
    command = [sys.executable, "-m", "couponflow", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith(f"{__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_settings_file_may_be_named_before_and_after_a_command(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "wrong.toml").write_text("[clicks]\nflush_rows = 0\n")
    (tmp_path / "rows.csv").write_text("a\n")
    words = (
        [*command.split(), str(tmp_path / "rows.csv")] if "import" in command else command.split()
    )
    option = ["--config", str(tmp_path / "wrong.toml")]
    for arguments in ([*option, *words], [*words, *option]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        assert "Usage:" not in result.output
