"""Figures as people read them (markdown, terminal) and as programs do (JSON)."""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench.redirect.machine import Machine

RESULTS = Path(__file__).with_name("results")


class Sheet(msgspec.Struct, frozen=True):
    """One table: a title, headings, and rows of text."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", _row(self.headings)]
        lines.append(_row(["---", *["---:"] * (len(self.headings) - 1)]))
        lines += [_row(row) for row in self.rows]
        return "\n".join(lines) + "\n"

    def table(self) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for index, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


class Goal(msgspec.Struct, frozen=True):
    """A goal of the bench and what was reached."""

    what: str
    goal: str
    reached: str
    met: bool


class Report(msgspec.Struct, frozen=True):
    """Everything a bench found; `figures` are its own structs."""

    bench: str
    machine: Machine
    goals: list[Goal]
    figures: msgspec.Raw
    sheets: list[Sheet]

    def markdown(self) -> str:
        return "\n".join([describe(self.machine), *(sheet.markdown() for sheet in self.sheets)])


def goals_sheet(goals: Sequence[Goal]) -> Sheet:
    rows = [[goal.what, goal.goal, goal.reached, "yes" if goal.met else "no"] for goal in goals]
    return Sheet("Goals", ["", "goal", "reached", "met"], rows)


def describe(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return (
        f"{machine.taken_at:%Y-%m-%d %H:%M} UTC, {machine.cores} x {machine.processor}, "
        f"Linux {machine.kernel}, load average before: {machine.load_average:.2f}.\n"
        f"{versions}.\n"
    )


def publish(report: Report, as_json: bool) -> None:
    """Save the report as markdown and JSON under `results/` and show it."""
    RESULTS.mkdir(exist_ok=True)
    stem = f"{report.machine.taken_at:%Y%m%dT%H%M%SZ}-{report.bench}"
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    (RESULTS / f"{stem}.json").write_bytes(encoded)
    (RESULTS / f"{stem}.md").write_text(report.markdown())
    if as_json:
        sys.stdout.write(encoded.decode() + "\n")
        return
    # Away from a terminal rich would fold everything into 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(describe(report.machine), highlight=False)
    for sheet in report.sheets:
        console.print(sheet.table())
    console.print(f"Saved as {RESULTS / stem}.md and .json", highlight=False, soft_wrap=True)


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return the median, and the least and the most where they differ."""
    middle = form(statistics.median(values))
    least, most = form(min(values)), form(max(values))
    return middle if least == most else f"{middle} ({least} to {most})"


def count(value: float) -> str:
    return f"{value:,.0f}"


def milliseconds(value: float) -> str:
    return f"{value:.2f}"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f}"


def seconds(value: float) -> str:
    return f"{value:.2f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
