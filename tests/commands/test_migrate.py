from pathlib import Path

from tests.commands.command_line import CommandLine
from tests.samples import rows_of

NAMES = [
    "0001_catalogue",
    "0002_clicks",
    "0003_dead_letters",
    "0004_workers",
    "0005_outbox",
    "0006_dead_letter_attempts",
    "0007_audit_logs",
    "0008_channel_controls",
    "0009_notifications",
    "0010_webhooks",
    "0011_checkout",
    "0012_cashback",
    "0013_delivery_reports",
    "0014_webhook_status",
]
TABLES = "select count(*) from pg_tables where schemaname = 'public'"


async def test_the_schema_is_made_once(tmp_path: Path, empty_database_url: str) -> None:
    command_line = CommandLine(tmp_path, empty_database_url)
    pending = (await command_line.run("migrate", "--status", "--json")).json()["migrations"]
    assert [state["applied_at"] for state in pending] == [None] * len(NAMES)
    assert await rows_of(empty_database_url, TABLES) == [(0,)]
    first = await command_line.run("migrate", "--json")
    assert (first.code, [name[:4] for name in first.json()["applied"]]) == (
        0,
        [name[:4] for name in NAMES],
    )
    again = await command_line.run("migrate")
    assert (again.code, again.out) == (0, "The schema is up to date.\n")


async def test_the_status_says_when_each_was_applied(tmp_path: Path, database_url: str) -> None:
    status = await CommandLine(tmp_path, database_url).run("migrate", "--status")
    assert status.code == 0
    assert "pending" not in status.out
    assert all(name.split("_", 1)[1].split("_")[0] in status.out for name in NAMES)
    assert "UTC" in status.out


async def test_a_database_that_is_away_is_one_clear_line(tmp_path: Path) -> None:
    url = f"postgresql://someone:secret@/shop?host={tmp_path}"
    ended = await CommandLine(tmp_path, url).run(
        "migrate", COUPONFLOW_DATABASE_CONNECT_TIMEOUT_SECONDS="0.3"
    )
    assert (ended.code, ended.out) == (1, "")
    assert "error: PostgreSQL is away" in ended.err
    assert "Traceback" not in ended.err
    assert "secret" not in ended.err


async def test_the_status_makes_no_database(tmp_path: Path) -> None:
    ended = await CommandLine(tmp_path, "").run("migrate", "--status")
    assert (ended.code, ended.out) == (1, "")
    assert "there is no database" in ended.err
    assert not (tmp_path / "var").exists()
