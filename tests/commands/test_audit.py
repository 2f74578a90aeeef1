from pathlib import Path

from tests.commands.command_line import CommandLine
from tests.samples import rows_of

NAMES = [
    "journalled-clicks-are-kept",
    "click-minutes-agree",
    "click-totals-agree",
    "clicks-have-their-offer",
]


async def test_what_holds_is_said_with_its_meaning(tmp_path: Path, database_url: str) -> None:
    ended = await CommandLine(tmp_path, database_url).run("audit")
    assert ended.code == 0
    assert [line.split()[:2] for line in ended.out.splitlines()] == [
        ["holds", name] for name in NAMES
    ]


async def test_what_is_broken_is_shown_with_its_rows_and_exit_code_1(
    tmp_path: Path, database_url: str
) -> None:
    await rows_of(
        database_url, "insert into click_minutes values ('2026-09-20 00:00Z', 'bot', 7) returning 1"
    )
    command_line = CommandLine(tmp_path, database_url)
    ended = await command_line.run("audit", "--json")
    content = ended.json()
    assert (ended.code, content["ok"]) == (1, False)
    (broken,) = [finding for finding in content["findings"] if not finding["ok"]]
    assert broken["name"] == "click-minutes-agree"
    assert broken["offenders"][0]["counted_clicks"] == "7"
    shown = await command_line.run("audit")
    assert shown.code == 1
    assert "BROKEN  click-minutes-agree" in shown.out
    assert "counted_clicks" in shown.out
