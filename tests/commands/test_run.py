import socket
from contextlib import closing
from pathlib import Path

import pytest

from couponflow.commands.run import own_command
from couponflow.config import JournalSettings
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.http import free_port
from couponflow.kernel.journal import open_journal
from tests.commands.command_line import CommandLine

HOST = "127.0.0.1"


def free_ports() -> dict[str, str]:
    return {
        "COUPONFLOW_REDIRECT_BIND": f"{HOST}:{free_port(HOST)}",
        "COUPONFLOW_OPS_BIND": f"{HOST}:{free_port(HOST)}",
        "COUPONFLOW_API_BIND": f"{HOST}:{free_port(HOST)}",
    }


@pytest.mark.parametrize(
    ("roles", "reason"),
    [("redirect", "Add clicks"), ("emails", "there is no role 'emails'"), ("", "no role is named")],
)
async def test_roles_that_cannot_run_are_wrong_usage(
    tmp_path: Path, roles: str, reason: str
) -> None:
    ended = await CommandLine(tmp_path, "").run("run", "--roles", roles)
    assert (ended.code, ended.out) == (2, "")
    assert reason in ended.err
    assert not (tmp_path / "var").exists()


async def test_settings_that_are_wrong_are_all_listed(tmp_path: Path) -> None:
    ended = await CommandLine(tmp_path, "").run(
        "run", COUPONFLOW_CLICKS_FLUSH_ROWS="none", COUPONFLOW_ENV="staging"
    )
    assert ended.code == 2
    assert "2 problems in the configuration" in ended.err
    assert not (tmp_path / "var").exists()


async def test_the_demo_is_not_for_production(tmp_path: Path, database_url: str) -> None:
    ended = await CommandLine(tmp_path, database_url).run(
        "run",
        "--demo",
        COUPONFLOW_ENV="production",
        COUPONFLOW_REDIRECT_STATS_TOKEN="secret",
        COUPONFLOW_API_JWT_SECRET="0123456789abcdef0123456789abcdef",
    )
    assert ended.code == 2
    assert "--demo loads made-up data" in ended.err


async def test_a_port_in_use_ends_it_before_anything_is_made(
    tmp_path: Path, database_url: str
) -> None:
    with closing(socket.socket()) as other:
        other.bind((HOST, 0))
        other.listen()
        taken = f"{HOST}:{other.getsockname()[1]}"
        ended = await CommandLine(tmp_path, database_url).run(
            "run", **{**free_ports(), "COUPONFLOW_REDIRECT_BIND": taken}
        )
    assert ended.code == 1
    assert f"cannot listen on {taken}" in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "var").exists()


async def test_a_second_daemon_on_one_var_folder_is_refused(
    tmp_path: Path, database_url: str
) -> None:
    with open_journal(tmp_path / "var" / "journal", JournalSettings(), SystemClock()):
        ended = await CommandLine(tmp_path, database_url).run("run", **free_ports())
    assert ended.code == 1
    assert ended.err.count("error: ") == 1
    assert "journal" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("arguments", [["run"], ["users", "import", "users.csv"]])
@pytest.mark.parametrize("database", ["none", "a configured one"])
async def test_a_var_folder_that_cannot_be_used_is_one_clear_line(
    tmp_path: Path, database_url: str, arguments: list[str], database: str
) -> None:
    (tmp_path / "var").write_text("a file")
    (tmp_path / "users.csv").write_text("user_uuid,email,mobile,name\n")
    url = "" if database == "none" else database_url
    ended = await CommandLine(tmp_path, url).run(*arguments, **free_ports())
    needs_var = arguments == ["run"] or not url
    assert ended.code == int(needs_var)
    assert ("COUPONFLOW_VAR_DIR" in ended.err) == needs_var
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("program", "command"),
    [
        # As `uv run` starts it, and by hand.
        ("/shop/.venv/bin/couponflow", ".venv/bin/couponflow"),
        (".venv/bin/couponflow", ".venv/bin/couponflow"),
        ("couponflow", "./couponflow"),
        ("/usr/local/bin/couponflow", "/usr/local/bin/couponflow"),
        ("/opt/our tools/couponflow", "'/opt/our tools/couponflow'"),
        ("/shop/couponflow/__main__.py", ".venv/bin/python -m couponflow"),
    ],
)
def test_the_demo_says_how_its_other_commands_are_typed_here(program: str, command: str) -> None:
    assert own_command(program, "/shop/.venv/bin/python", Path("/shop")) == command
