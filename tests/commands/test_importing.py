import os
from pathlib import Path

import pytest

from tests.commands.command_line import CommandLine
from tests.samples import OFFER_ID, rows_of

MERCHANTS = """\
slug,name,network,tracking_template,fallback_url,cashback_percent
zenmart,ZenMart,cj,https://go.example/?u={url}&s={click_id},,5
broken,Broken,cj,https://go.example/?u={url},,5
"""
OFFERS = f"""\
offer_uuid,merchant_slug,title,url,starts_at,expires_at,active
{OFFER_ID},zenmart,An offer,https://shop.example/,,,true
"""
COUNT = "select count(*) from merchants"


async def test_good_rows_are_taken_and_bad_ones_are_set_aside(
    tmp_path: Path, database_url: str
) -> None:
    command_line = CommandLine(tmp_path, database_url)
    (tmp_path / "merchants.csv").write_text(MERCHANTS)
    ended = await command_line.run("merchants", "import", "merchants.csv")
    assert ended.code == 0
    assert ended.out.startswith(
        "merchants: 2 rows read, 1 inserted, 0 updated, 0 unchanged, 1 rejected\n  line 3: "
    )
    assert "lacks {click_id}" in ended.out
    assert "broken" in (tmp_path / "merchants.csv.rejects.csv").read_text()
    assert await rows_of(database_url, "select slug from merchants") == [("zenmart",)]


async def test_a_dry_run_reports_and_changes_nothing(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "merchants.csv").write_text(MERCHANTS)
    ended = await CommandLine(tmp_path, database_url).run(
        "merchants", "import", "merchants.csv", "--dry-run", "--json"
    )
    content = ended.json()
    assert ended.code == 0
    assert content["report"]["dry_run"] is True
    assert (content["report"]["inserted"], content["report"]["rejected"]) == (1, 1)
    assert content["first_rejects"][0][0] == 3
    assert content["report"]["rejects"] is None
    assert os.listdir(tmp_path) == ["merchants.csv"]
    assert await rows_of(database_url, COUNT) == [(0,)]


async def test_offers_and_users_are_imported_with_the_same_words(
    tmp_path: Path, database_url: str
) -> None:
    command_line = CommandLine(tmp_path, database_url)
    (tmp_path / "merchants.csv").write_text(MERCHANTS)
    (tmp_path / "offers.csv").write_text(OFFERS)
    rejects = tmp_path / "bad.csv"
    await command_line.run("merchants", "import", "merchants.csv", "--rejects", str(rejects))
    ended = await command_line.run("offers", "import", "offers.csv", "--json")
    report = ended.json()["report"]
    assert (ended.code, report["inserted"], report["rejected"]) == (0, 1, 0)
    assert rejects.exists()
    assert not (tmp_path / "merchants.csv.rejects.csv").exists()


async def test_a_file_with_another_header_is_refused_with_one_clear_line(
    tmp_path: Path, database_url: str
) -> None:
    (tmp_path / "offers.csv").write_text("a,b\n1,2\n")
    ended = await CommandLine(tmp_path, database_url).run("offers", "import", "offers.csv")
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err


async def test_a_dry_run_writes_rejects_only_where_it_is_told(
    tmp_path: Path, database_url: str
) -> None:
    (tmp_path / "merchants.csv").write_text(MERCHANTS)
    ended = await CommandLine(tmp_path, database_url).run(
        "merchants", "import", "merchants.csv", "--dry-run", "--rejects", "bad.csv"
    )
    assert ended.code == 0
    assert ended.out.endswith("Rejected rows are in bad.csv\n")
    assert "broken" in (tmp_path / "bad.csv").read_text()


async def test_a_dry_run_refuses_a_schema_that_is_not_current(
    tmp_path: Path, empty_database_url: str
) -> None:
    (tmp_path / "merchants.csv").write_text(MERCHANTS)
    ended = await CommandLine(tmp_path, empty_database_url).run(
        "merchants", "import", "merchants.csv", "--dry-run"
    )
    assert (ended.code, ended.out) == (1, "")
    assert "run `couponflow migrate` first" in ended.err
    tables = "select count(*) from pg_tables where schemaname = 'public'"
    assert await rows_of(empty_database_url, tables) == [(0,)]


async def test_a_dry_run_makes_no_database(tmp_path: Path) -> None:
    (tmp_path / "merchants.csv").write_text(MERCHANTS)
    ended = await CommandLine(tmp_path, "").run("merchants", "import", "merchants.csv", "--dry-run")
    assert (ended.code, ended.out) == (1, "")
    assert "there is no database" in ended.err
    assert not (tmp_path / "var").exists()


async def test_rejects_of_standard_input_go_to_the_current_folder(
    tmp_path: Path, database_url: str
) -> None:
    (tmp_path / "input.csv").write_text(MERCHANTS)
    ended = await CommandLine(tmp_path, database_url).run_reading(
        tmp_path / "input.csv", "merchants", "import", "/dev/stdin"
    )
    assert ended.code == 0
    assert ended.out.endswith("Rejected rows are in merchants.rejects.csv\n")
    assert "broken" in (tmp_path / "merchants.rejects.csv").read_text()


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
async def test_rows_that_are_all_bad_are_exit_code_1(
    tmp_path: Path, database_url: str, flags: list[str]
) -> None:
    header, _, bad, _ = MERCHANTS.split("\n")
    (tmp_path / "merchants.csv").write_text(f"{header}\n{bad}\n")
    command_line = CommandLine(tmp_path, database_url)
    ended = await command_line.run("merchants", "import", "merchants.csv", *flags)
    assert ended.code == 1
    assert "1 rows read" in ended.out
    (tmp_path / "merchants.csv").write_text(f"{header}\n")
    assert (await command_line.run("merchants", "import", "merchants.csv", *flags)).code == 0
