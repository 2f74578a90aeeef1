"""The command line's part for what outside services told us: `webhooks`."""

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import click

from couponflow.cli_options import (
    config_option,
    dry_run_option,
    ids_argument,
    json_option,
    limit_option,
    yes_option,
)

P = ParamSpec("P")


@click.group()
def webhooks() -> None:
    """What outside services told us, and sending it on its way again."""


_STATUSES = {
    "waiting": "it, or what followed from it, is on its way or to be tried again",
    "dead": "it, or what followed from it, is a dead letter",
    "given-up": "an operator discarded such a letter, and has not replayed the event since",
    "processed": "none of these, so all is done",
    "refused": "its sender was not believed",
}


def _which_events(command: Callable[P, None]) -> Callable[P, None]:
    """The options that say which events are meant: those that agree with all of them."""
    texts = {
        "--text": "With this text in the body or the query string.",
        "--until": "Received before then.",
        "--since": "Received since then: 2026-11-20T18:30:00Z, or 2h for 2 hours ago.",
        "--event-id": "Called so by its sender, as evt_1OxyzABC.",
        "--type": "Of this type, as its sender calls it.",
        "--source": "Of this sender, as razorpay.",
    }
    explained = "; ".join(f"{name}: {meaning}" for name, meaning in _STATUSES.items())
    statuses = click.Choice([*_STATUSES])
    command = click.option("--status", type=statuses, help=f"How far it is. {explained}.")(command)
    for name, text in texts.items():
        command = click.option(name, help=text)(command)
    return ids_argument(command)


@webhooks.command("list")
@_which_events
@limit_option
@click.option("--cursor", help="Go on where a list ended that said so.")
@config_option
@json_option
@click.pass_obj
def list_(
    config: Path | None, limit: int, cursor: str | None, as_json: bool, **which: object
) -> None:
    """List events, newest first, without what is in them."""
    from couponflow.commands.webhooks import list_command

    list_command(config, which, limit, cursor, as_json=as_json)


@webhooks.command()
@click.argument("webhook_id", metavar="ID")
@click.option("--reveal", is_flag=True, help="With secrets and personal data; it is on record.")
@config_option
@json_option
@click.pass_obj
def show(config: Path | None, webhook_id: str, reveal: bool, as_json: bool) -> None:
    """Show an event, and what became of the messages that followed from it.

    ID is the event's own, or what its sender calls it.
    """
    from couponflow.commands.webhooks import show_command

    show_command(config, webhook_id, reveal=reveal, as_json=as_json)


@webhooks.command()
@_which_events
@click.option("--all", "everything", is_flag=True, help="Every event that can be replayed.")
@yes_option
@dry_run_option
@config_option
@json_option
@click.pass_obj
def replay(config: Path | None, yes: bool, dry_run: bool, as_json: bool, **which: object) -> None:
    """Send events on their way again, after saying how many match.

    What had its effect has it no second time, for as long as that is remembered: [outbox]
    done_days, 7 by default.

    Refused events are never replayed, and left out unless --status refused or their ids ask for
    them. Those that an operator gave up, by discarding a dead letter, are replayed only if an ID or
    --event-id names them.
    """
    from couponflow.commands.webhooks import replay_command

    replay_command(config, which, yes=yes, dry_run=dry_run, as_json=as_json)
