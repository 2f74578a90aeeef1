"""The command line; what a command does is in `couponflow/commands/`, imported when asked for."""

from pathlib import Path
from typing import Literal

import click

from couponflow import __version__
from couponflow.cli_messages import dead_letters, queue
from couponflow.cli_options import FiniteFloat, config_option, json_option
from couponflow.cli_webhooks import webhooks

_CSV_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="couponflow")
@config_option
def main() -> None:
    """The back end of a coupon and cashback business in one daemon."""


@main.command()
@click.option("--roles", default="all", show_default=True, help="Roles or groups, by commas.")
@click.option("--demo", is_flag=True, help="Load a sample catalogue and simulate the networks.")
@click.option("--traffic", is_flag=True, help="With --demo: send a stream of made-up shoppers.")
@config_option
@click.pass_obj
def run(config: Path | None, roles: str, demo: bool, traffic: bool) -> None:
    """Run the daemon until SIGTERM or Ctrl-C; a second signal exits at once.

    Without DATABASE_URL it brings its own PostgreSQL, in var/postgres.
    """
    from couponflow.commands.run import run_command

    if traffic and not demo:
        raise click.UsageError("--traffic goes with --demo")
    run_command(config, roles, demo=demo, traffic=traffic)


@main.command()
@click.option("--roles", default="all", show_default=True, help="Roles it would run with.")
@config_option
@json_option
@click.pass_obj
def check(config: Path | None, roles: str, as_json: bool) -> None:
    """Check configuration, ports, folders and connections; name every problem at once.

    The exit code is 2 if the configuration or --roles is wrong, 1 for any other problem.
    """
    from couponflow.commands.check import check_command

    check_command(config, roles, as_json=as_json)


@main.command()
@click.option("--status", is_flag=True, help="Show which migrations are applied; change nothing.")
@config_option
@json_option
@click.pass_obj
def migrate(config: Path | None, status: bool, as_json: bool) -> None:
    """Bring the database's schema up to date. `couponflow run` does so, too."""
    from couponflow.commands.migrate import migrate_command

    migrate_command(config, status=status, as_json=as_json)


@main.group()
def merchants() -> None:
    """Shops and their tracking links."""


@main.group()
def offers() -> None:
    """What shoppers can follow a link to."""


@main.group()
def users() -> None:
    """Shoppers."""


def _add_import(
    group: click.Group, kind: Literal["merchants", "offers", "users"], columns: str
) -> None:
    @group.command(
        "import",
        help=f"""Import FILE, a CSV with the header {columns}.

        Good rows are inserted or updated, in one transaction. Bad rows are reported with line and
        reason, and written to a rejects file; a dry run writes one only with --rejects.

        The exit code is 1 if there are rows and every one is bad, else 0.""",
    )
    @click.argument("file", type=_CSV_FILE)
    @click.option("--dry-run", is_flag=True, help="Report every bad row; change nothing.")
    @click.option(
        "--rejects",
        type=click.Path(dir_okay=False, writable=True, path_type=Path),
        help="Where bad rows go; else FILE.rejects.csv, in the current folder if not beside FILE.",
    )
    @config_option
    @json_option
    @click.pass_obj
    def import_(
        config: Path | None, file: Path, dry_run: bool, rejects: Path | None, as_json: bool
    ) -> None:
        from couponflow.commands.importing import import_command

        import_command(config, kind, file, dry_run=dry_run, rejects=rejects, as_json=as_json)


_add_import(
    merchants,
    "merchants",
    "slug,name,network,tracking_template,fallback_url,cashback_percent",
)
_add_import(offers, "offers", "offer_uuid,merchant_slug,title,url,starts_at,expires_at,active")
_add_import(users, "users", "user_uuid,email,mobile,name")


@main.command()
@click.option(
    "--role",
    type=click.Choice(["shopper", "merchant", "service", "admin"]),
    required=True,
    help="What its bearer may do.",
)
@click.option("--subject", default="cli", show_default=True, help="Whom it names in audit logs.")
@click.option(
    "--hours",
    type=FiniteFloat(min=0, max=8_760, min_open=True),
    default=1.0,
    show_default=True,
    help="How long it is good for: it cannot be taken back.",
)
@config_option
@json_option
@click.pass_obj
def token(
    config: Path | None,
    role: Literal["shopper", "merchant", "service", "admin"],
    subject: str,
    hours: float,
    as_json: bool,
) -> None:
    """Print a bearer token for the API."""
    from couponflow.commands.token import token_command

    token_command(config, role, subject, hours, as_json=as_json)


@main.command()
@config_option
@json_option
@click.pass_obj
def audit(config: Path | None, as_json: bool) -> None:
    """Check named invariants over everything stored; exit 1 if one does not hold.

    It changes nothing: the schema must be current.
    """
    from couponflow.commands.audit import audit_command

    audit_command(config, as_json=as_json)


main.add_command(queue)
main.add_command(dead_letters)
main.add_command(webhooks)
