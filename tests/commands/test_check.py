import socket
from contextlib import closing
from pathlib import Path

import pytest

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
        "COUPONFLOW_WEBHOOKS_BIND": f"{HOST}:{free_port(HOST)}",
    }


async def test_when_all_is_well_each_check_says_so(tmp_path: Path, database_url: str) -> None:
    ended = await CommandLine(tmp_path, database_url).run("check", "--json", **free_ports())
    content = ended.json()
    assert (ended.code, content["ok"]) == (0, True)
    checks = {check["name"]: check for check in content["checks"]}
    assert list(checks) == [
        "configuration",
        "roles",
        "var_dir",
        "[redirect] bind",
        "[ops] bind",
        "[webhooks] bind",
        "[api] bind",
        "webhooks",
        "database",
    ]
    assert checks["database"]["detail"] == "reachable; 0 of 14 migrations pending"
    assert checks["webhooks"]["detail"].startswith("on: none; off, for want of a secret: razorpay,")
    assert not (tmp_path / "var").exists()


async def test_senders_that_are_set_up_are_named_and_broken_ones_are_a_problem(
    tmp_path: Path, database_url: str
) -> None:
    command_line = CommandLine(tmp_path, database_url)
    senders = {"STRIPE_WEBHOOK_SECRET": "whsec_x", "SENDGRID_WEBHOOK_PUBLIC_KEY": "no key"}
    ended = await command_line.run("check", "--json", **free_ports(), **senders)
    checks = {check["name"]: check for check in ended.json()["checks"]}
    assert ended.code == 1
    assert checks["webhooks"]["detail"].startswith(
        "[sendgrid] webhook_public_key (SENDGRID_WEBHOOK_PUBLIC_KEY): number 1 is not a P-256"
    )
    del senders["SENDGRID_WEBHOOK_PUBLIC_KEY"]
    senders |= {
        "STRIPE_WEBHOOK_SECRET": "whsec_x, whsec_y,whsec_x",
        "QSTASH_NEXT_SIGNING_KEY": "sig_x",
        "COUPONFLOW_GENERIC_WEBHOOKS": '{"till": {"secrets": ["a", ""], "signature_header": "x"}}',
    }
    ended = await command_line.run("check", "--json", **free_ports(), **senders)
    checks = {check["name"]: check for check in ended.json()["checks"]}
    assert checks["webhooks"]["detail"].startswith(
        "on: stripe (2 secrets), qstash (1 secret), generic/till (1 secret); off"
    )
    assert "whsec_x" not in ended.out


async def test_a_secret_that_can_be_guessed_is_warned_of_and_refused_in_production(
    tmp_path: Path, database_url: str
) -> None:
    command_line = CommandLine(tmp_path, database_url)
    ended = await command_line.run(
        "check", "--json", **free_ports(), ADMITAD_POSTBACK_SECRET="hunter2"
    )
    checks = {check["name"]: check for check in ended.json()["checks"]}
    assert ended.code == 0
    assert "(ADMITAD_POSTBACK_SECRET) has a secret of fewer" in checks["configuration"]["detail"]
    refused = await command_line.run(
        "check", "--json", COUPONFLOW_ENV="production", ADMITAD_POSTBACK_SECRET="hunter2"
    )
    assert refused.code == 2
    assert "[admitad] postback_secret (ADMITAD_POSTBACK_SECRET)" in refused.out
    assert "hunter2" not in ended.out + ended.err + refused.out + refused.err


async def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with closing(socket.socket()) as other:
        other.bind((HOST, 0))
        other.listen()
        taken = f"{HOST}:{other.getsockname()[1]}"
        (tmp_path / "var").write_text("a file")
        url = f"postgresql://someone:hunter2@/shop?host={tmp_path}"
        ended = await CommandLine(tmp_path, url).run(
            "check",
            "--roles",
            "redirect",
            COUPONFLOW_REDIRECT_BIND=taken,
            COUPONFLOW_OPS_BIND=f"{HOST}:{free_port(HOST)}",
            COUPONFLOW_VAR_DIR=str(tmp_path / "var" / "deeper"),
        )
    assert ended.code == 2
    problems = [line for line in ended.out.splitlines() if line.startswith("problem")]
    assert len(problems) == 4
    assert "Add clicks" in problems[0]
    assert "var" in problems[1]
    assert taken in problems[2]
    assert "PostgreSQL is away" in problems[3]
    assert "hunter2" not in ended.out + ended.err
    assert "Traceback" not in ended.err


async def test_settings_that_are_wrong_are_all_listed(tmp_path: Path, database_url: str) -> None:
    ended = await CommandLine(tmp_path, database_url).run(
        "check",
        "--json",
        COUPONFLOW_CLICKS_FLUSH_ROWS="none",
        COUPONFLOW_REDIRECT_BIND="nowhere",
    )
    content = ended.json()
    assert (ended.code, content["ok"]) == (2, False)
    assert not any(check["name"] in check["detail"] for check in content["checks"])
    named = " ".join(check["name"] for check in content["checks"])
    assert "flush_rows" in named
    assert "bind" in named


@pytest.mark.parametrize("as_json", [True, False])
async def test_what_is_not_at_its_default_is_shown_and_secrets_are_not(
    tmp_path: Path, database_url: str, as_json: bool
) -> None:
    arguments = ["check", "--json"] if as_json else ["check"]
    ended = await CommandLine(tmp_path, database_url).run(
        *arguments, COUPONFLOW_REDIRECT_STATS_TOKEN="hunter2", **free_ports()
    )
    assert ended.code == 0
    assert "stats_token" in ended.out
    assert "hunter2" not in ended.out + ended.err


async def test_without_a_database_url_the_embedded_one_is_found(tmp_path: Path) -> None:
    ended = await CommandLine(tmp_path, "").run("check", **free_ports())
    assert ended.code == 0
    assert "embedded PostgreSQL" in ended.out


@pytest.mark.parametrize(("roles", "code"), [("all", 1), ("clicks", 0)])
async def test_only_the_ports_of_the_roles_asked_for_are_looked_at(
    tmp_path: Path, roles: str, code: int
) -> None:
    with closing(socket.socket()) as other:
        other.bind((HOST, 0))
        other.listen()
        taken = f"{HOST}:{other.getsockname()[1]}"
        ended = await CommandLine(tmp_path, "").run(
            "check", "--roles", roles, **{**free_ports(), "COUPONFLOW_REDIRECT_BIND": taken}
        )
    assert (ended.code, "[redirect] bind  " in ended.out) == (code, roles == "all")


async def test_the_ports_of_the_daemon_running_here_are_no_problem(tmp_path: Path) -> None:
    command_line = CommandLine(tmp_path, "")
    with closing(socket.socket()) as daemon:
        daemon.bind((HOST, 0))
        daemon.listen()
        taken = f"{HOST}:{daemon.getsockname()[1]}"
        binds = {**free_ports(), "COUPONFLOW_OPS_BIND": taken}
        with open_journal(tmp_path / "var" / "journal", JournalSettings(), SystemClock()):
            running = await command_line.run("check", "--json", **binds)
        ended = await command_line.run("check", "--json", **binds)
    checks = {check["name"]: check for check in running.json()["checks"]}
    assert running.code == 0
    assert checks["var_dir"]["detail"].endswith("; a daemon is running on this var folder")
    assert checks["[ops] bind"]["detail"].startswith(f"{taken} is in use; ")
    problems = [check["name"] for check in ended.json()["checks"] if not check["ok"]]
    assert (ended.code, problems) == (1, ["[ops] bind"])
