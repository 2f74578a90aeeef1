"""The command line's part for messages: `queue` and `dead-letters`."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, ParamSpec

import click

from couponflow.cli_options import (
    FiniteFloat,
    config_option,
    dry_run_option,
    ids_argument,
    json_option,
    limit_option,
    yes_option,
)

P = ParamSpec("P")


class _Limit(click.ParamType):
    """A number, or `off`."""

    name = "limit"

    def __init__(self, number: click.ParamType) -> None:
        self._number = number

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        return value if value == "off" else self._number.convert(value, param, ctx)


@click.group()
def queue() -> None:
    """The channels between roles."""


@queue.command()
@config_option
@json_option
@click.pass_obj
def stats(config: Path | None, as_json: bool) -> None:
    """Show what waits on each channel of the daemon running here, and in the outbox.

    Without a daemon the outbox is shown alone.
    """
    from couponflow.commands.queue import queue_stats_command

    queue_stats_command(config, as_json=as_json)


@queue.command()
@click.argument("channel")
@click.argument("json_text", metavar="[JSON]", required=False)
@click.option("--at", help="When it is due, as 2030-01-31T18:30:00Z; else at once.")
@click.option("--dedup-key", help="Push nothing while a message with this key is not done.")
@click.option("--lines", is_flag=True, help="Read a message from each line of standard input.")
@config_option
@json_option
@click.pass_obj
def push(
    config: Path | None,
    channel: str,
    json_text: str | None,
    at: str | None,
    dedup_key: str | None,
    lines: bool,
    as_json: bool,
) -> None:
    """Publish the message JSON on CHANNEL; `-` reads it from standard input.

    With --lines all messages are published, or none if one of them is bad. No daemon need run:
    the messages wait in PostgreSQL for one.
    """
    from couponflow.commands.queue_push import queue_push_command, queue_push_lines_command

    if lines:
        if dedup_key is not None or json_text not in (None, "-"):
            raise click.UsageError("--lines reads standard input, and goes without --dedup-key")
        queue_push_lines_command(config, channel, at=at, as_json=as_json)
    elif json_text is None:
        raise click.UsageError("give the message as JSON, `-` for standard input, or --lines")
    else:
        queue_push_command(config, channel, json_text, at=at, dedup_key=dedup_key, as_json=as_json)


@queue.command()
@click.argument("channel")
@config_option
@json_option
@click.pass_obj
def pause(config: Path | None, channel: str, as_json: bool) -> None:
    """Begin no more messages of CHANNEL, in the whole installation."""
    _control(config, channel, paused=True, as_json=as_json)


@queue.command()
@click.argument("channel")
@config_option
@json_option
@click.pass_obj
def resume(config: Path | None, channel: str, as_json: bool) -> None:
    """Begin messages of CHANNEL again."""
    _control(config, channel, paused=False, as_json=as_json)


@queue.command()
@click.argument("channel")
@click.option(
    "--per-second",
    type=_Limit(FiniteFloat(min=0, max=1_000_000, min_open=True)),
    metavar="N|off",
    help="Messages begun in a second, by each daemon.",
)
@click.option(
    "--concurrency",
    type=_Limit(click.IntRange(min=1, max=100_000)),
    metavar="N|off",
    help="Messages worked on at once, by each daemon.",
)
@config_option
@json_option
@click.pass_obj
def limit(
    config: Path | None,
    channel: str,
    per_second: float | Literal["off"] | None,
    concurrency: int | Literal["off"] | None,
    as_json: bool,
) -> None:
    """Limit CHANNEL in the whole installation; `off` takes a limit away."""
    if per_second is None and concurrency is None:
        raise click.UsageError("give --per-second, --concurrency or both")
    _control(config, channel, rate_per_second=per_second, concurrency=concurrency, as_json=as_json)


def _control(
    config: Path | None,
    channel: str,
    *,
    paused: bool | None = None,
    rate_per_second: float | Literal["off"] | None = None,
    concurrency: int | Literal["off"] | None = None,
    as_json: bool,
) -> None:
    """Change what is given; None leaves it as it is."""
    from couponflow.commands.queue import queue_control_command

    queue_control_command(
        config,
        channel,
        paused=paused,
        rate_per_second=rate_per_second,
        concurrency=concurrency,
        as_json=as_json,
    )


@click.group("dead-letters")
def dead_letters() -> None:
    """Messages that could not be processed, until an operator decides."""


def _which_letters(command: Callable[P, None]) -> Callable[P, None]:
    """The options that say which letters are meant: those that agree with all of them."""
    texts = {
        "--until": "Dead before then.",
        "--since": "Dead since then: 2026-11-20T18:30:00Z, or 2h for 2 hours ago.",
        "--correlation-id": "Of this story.",
        "--reason": "With this text in the reason, in whatever case.",
        "--type": "Of this message type, as email.v1.",
        "--channel": "Of this channel.",
    }
    for name, text in texts.items():
        command = click.option(name, help=text)(command)
    return command


@dead_letters.command("list")
@_which_letters
@limit_option
@config_option
@json_option
@click.pass_obj
def list_(config: Path | None, limit: int, as_json: bool, **which: object) -> None:
    """List dead letters, newest first."""
    from couponflow.commands.dead_letters import list_command

    list_command(config, which, limit, as_json=as_json)


@dead_letters.command()
@click.argument("letter_id", metavar="ID")
@config_option
@json_option
@click.pass_obj
def show(config: Path | None, letter_id: str, as_json: bool) -> None:
    """Show a dead letter, by its id or its message's, with the error of every attempt."""
    from couponflow.commands.dead_letters import show_command

    show_command(config, letter_id, as_json=as_json)


def _add_action(verb: Literal["replay", "discard"], text: str) -> None:
    @dead_letters.command(verb, help=text)
    @ids_argument
    @_which_letters
    @click.option("--all", "everything", is_flag=True, help="Every letter there is.")
    @yes_option
    @dry_run_option
    @config_option
    @json_option
    @click.pass_obj
    def act(config: Path | None, yes: bool, dry_run: bool, as_json: bool, **which: object) -> None:
        from couponflow.commands.dead_letters import act_command

        act_command(config, verb, which, yes=yes, dry_run=dry_run, as_json=as_json)


_add_action("replay", "Send dead letters on their way again, after saying how many match.")
_add_action("discard", "Give dead letters up; the audit log keeps them whole.")
