"""`couponflow run`."""

import random
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
from rich.table import Table

from couponflow.catalogue.sample import sample_merchants, sample_offers, sample_users
from couponflow.commands.support import WRONG_USAGE, fail, out, read_settings, run_async
from couponflow.config import KEYS, VARIABLES, Settings
from couponflow.daemon import Running, RunOptions, run_daemon
from couponflow.roles import RolesInvalid, parse_roles
from couponflow.sandbox.senders.keys import SenderKeys, demo_keys, settings_of

_LOOPBACK = ("127.0.0.0/8", "::1")
_LINKS_SHOWN = 4


def run_command(config: Path | None, roles: str, *, demo: bool, traffic: bool) -> None:
    settings = read_settings(config)
    try:
        options = RunOptions(
            parse_roles(roles, in_memory=not settings.redis.url), demo=demo, traffic=traffic
        )
    except RolesInvalid as error:
        fail(str(error), WRONG_USAGE)
    if demo:
        keys = demo_keys(random.SystemRandom())
        settings = _for_demo(settings, keys)
        options = replace(options, sender_keys=keys)
    on_running = _show_demo if demo else _say_nothing
    run_async(partial(run_daemon, settings, options, on_running))


def _for_demo(settings: Settings, keys: SenderKeys) -> Settings:
    """Let the demo's shoppers, who all call from this machine, have addresses of their own, and
    its providers be believed beside those that are set up."""
    if settings.env == "production":
        fail("--demo loads made-up data: it is not for env = production", WRONG_USAGE)
    http = msgspec.structs.replace(
        settings.http, trusted_proxies=(*settings.http.trusted_proxies, *_LOOPBACK)
    )
    settings = msgspec.structs.replace(settings, http=http)
    for variable, secret in settings_of(keys).items():
        key = VARIABLES[variable]
        if key.path == "qstash.current_signing_key" and settings.qstash.current_signing_key:
            key = KEYS["qstash.next_signing_key"]
        section = getattr(settings, key.section)
        given = getattr(section, key.name)
        value = (*given, secret) if isinstance(key.default, tuple) else given or secret
        section = msgspec.structs.replace(section, **{key.name: value})
        settings = msgspec.structs.replace(settings, **{key.section: section})
    return settings


def _say_nothing(running: Running) -> None:
    """Without --demo the log is the whole output."""


def _show_demo(running: Running) -> None:
    table = Table(title="couponflow demo", title_justify="left", show_header=False, box=None)
    if running.redirect_url:
        table.add_row("redirects", f"{running.redirect_url}/out/MERCHANT/OFFER/USER")
        table.add_row("statistics", f"{running.redirect_url}/stats")
    if running.webhooks_url:
        table.add_row("webhooks", f"{running.webhooks_url}/razorpay, /stripe, /admitad, ...")
    if running.api_url:
        table.add_row("API", f"{running.api_url}/api/v1/queue/stats")
    table.add_row("health", f"{running.ops_url}/ready")
    table.add_row("metrics", f"{running.ops_url}/metrics")
    if running.sandbox_url:
        table.add_row("networks (simulated)", running.sandbox_url)
    table.add_row("database", running.database)
    out.print()
    out.print(table, soft_wrap=True)
    if running.redirect_url and running.sandbox_url:
        out.print("\nFollow a link, then look at the statistics:")
        for link in _links(running.redirect_url, running.sandbox_url):
            out.print(f"  {link}", soft_wrap=True)
    if running.webhooks_url:
        command = own_command(sys.argv[0], sys.executable, Path.cwd())
        out.print(
            f"\nSee what payment gateways, networks and carriers sent: {command} webhooks list",
            markup=False,
            soft_wrap=True,
        )
    out.print("\nStop with Ctrl-C.")


def own_command(program: str, python: str, folder: Path) -> str:
    """What to type in that folder for the program that runs: its name alone may not be on PATH."""
    if Path(program).name == "__main__.py":
        return f"{_from(folder, python)} -m couponflow"
    return _from(folder, program)


def _from(folder: Path, file: str) -> str:
    # Links are left as they are: in a virtual environment they are what makes it one.
    absolute = folder / file
    if not absolute.is_relative_to(folder):
        return shlex.quote(str(absolute))
    path = str(absolute.relative_to(folder))
    # A shell looks for a name without a slash on PATH only.
    return shlex.quote(path if "/" in path else f"./{path}")


def _links(redirect_url: str, sandbox_url: str) -> list[str]:
    """A link to one offer of each of the first merchants, for the first user."""
    user_id = sample_users()[0].user_id
    slugs = [merchant.slug for merchant in sample_merchants(sandbox_url)][:_LINKS_SHOWN]
    by_merchant = {
        offer.merchant_slug: offer.offer_id for offer in reversed(sample_offers()) if offer.active
    }
    return [f"{redirect_url}/out/{slug}/{by_merchant[slug]}/{user_id}" for slug in slugs]
