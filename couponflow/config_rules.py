"""What must hold between the settings and about the text inside one, and what looks like a slip."""

import ipaddress
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from couponflow.config import ADDRESS_SECRETS, KEYS, SENDER_SECTIONS, Settings
from couponflow.config_sources import GenericSettings, SourceSettings
from couponflow.messages import CHANNELS

_PATH_PART = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PLACEHOLDER = re.compile(r"\{(.*?)\}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
"""A token of HTTP; a header of another name cannot arrive."""
ADDRESS_SECRET_MIN = 16
"""Characters of a secret that is all the proof there is; shorter ones can be guessed in time."""
_SHORT_SECRET = (
    f"has a secret of fewer than {ADDRESS_SECRET_MIN} characters, and who guesses it is believed"
)


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """Values that may each be well formed and still cannot be used, or not together."""

    keys: tuple[str, ...]
    """The keys involved, as `section.key`; the first is the one to change."""
    problem: str
    example: str = ""
    """A right value, where the key's own example might break the rule too."""


def broken_rules(settings: Settings) -> Iterator[BrokenRule]:
    """Every rule between values, and about the text inside a value, that these settings break."""
    yield from _broken_limits(settings)
    yield from _broken_consumers(settings)
    yield from _broken_listeners(settings)
    yield from _broken_addresses(settings)
    yield from _broken_cluster(settings)
    yield from _broken_token_keys(settings)
    yield from _broken_senders(settings)
    if settings.env == "production":
        yield from _missing_in_production(settings)
        for path in _short_secrets(settings):
            yield BrokenRule(
                (path, "env"),
                f'{_SHORT_SECRET}, and env = "production" does not take that',
            )


def settings_warnings(settings: Settings) -> list[str]:
    """What the settings allow but the operator probably did not mean."""
    too_short = [
        f"{KEYS[path].label} {_SHORT_SECRET}: `openssl rand -hex 32` makes a good one. Production "
        "refuses it."
        for path in _short_secrets(settings)
    ]
    return too_short + [
        f"[http] trusted_proxies holds {proxy}, which is every address: anybody can claim any "
        "client address in X-Forwarded-For. List only your own proxies."
        for proxy in settings.http.trusted_proxies
        if ipaddress.ip_network(proxy).prefixlen == 0
    ]


def _short_secrets(settings: Settings) -> Iterator[str]:
    """The keys of secrets that are all the proof there is and too short for that."""
    for path in ADDRESS_SECRETS:
        section, _, name = path.partition(".")
        secrets: tuple[str, ...] = getattr(getattr(settings, section), name)
        # An empty one lets nobody in.
        if any(0 < len(secret) < ADDRESS_SECRET_MIN for secret in secrets):
            yield path


def parse_bind(text: str) -> tuple[str, int]:
    """Split `host:port`, or `[IPv6 address]:port`, into host and port.

    Port 0 is allowed: the system then chooses a free one. Raises `ValueError` saying what is wrong.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"must be host:port, not {text!r}")
    if not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(f"must end in a port from 0 to 65535, not in {port!r}")
    if host.startswith("[") and host.endswith("]"):
        return _ipv6_host(host[1:-1]), int(port)
    if ":" in host:
        raise ValueError(f"must have its IPv6 address in brackets, as in [::1]:{port}")
    if not host.isprintable() or set(host) & set(" /@[]"):
        raise ValueError(f"must begin with an address or a host name, not with {host!r}")
    return host, int(port)


def _ipv6_host(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise ValueError(f"must have an IPv6 address between its brackets, not {text!r}") from error


def _broken_limits(settings: Settings) -> Iterator[BrokenRule]:
    database, journal, channels = settings.database, settings.journal, settings.channels
    if database.pool_min > database.pool_max:
        yield BrokenRule(
            ("database.pool_min", "database.pool_max"),
            f"is {database.pool_min}, more than [database] pool_max = {database.pool_max}",
            str(database.pool_max),
        )
    if journal.max_bytes < 2 * journal.segment_bytes:
        yield BrokenRule(
            ("journal.max_bytes", "journal.segment_bytes"),
            f"is {journal.max_bytes}, less than two segments of "
            f"[journal] segment_bytes = {journal.segment_bytes}",
            str(2 * journal.segment_bytes),
        )
    # While PostgreSQL is away, one batch is out with its writer and no longer waits.
    waiting_max = channels.capacity - settings.clicks.flush_rows
    if waiting_max <= 0:
        yield BrokenRule(
            ("channels.capacity", "clicks.flush_rows"),
            f"is {channels.capacity}, so no click can wait beside a full batch of "
            f"[clicks] flush_rows = {settings.clicks.flush_rows}",
            str(4 * settings.clicks.flush_rows),
        )
    elif channels.depth_alarm > waiting_max:
        yield BrokenRule(
            ("channels.depth_alarm", "channels.capacity", "clicks.flush_rows"),
            f"is {channels.depth_alarm}, and no more than {waiting_max} ever wait ([channels] "
            f"capacity = {channels.capacity} less [clicks] flush_rows = "
            f"{settings.clicks.flush_rows}), so it can never ring",
            str(max(1, waiting_max * 5 // 6)),
        )


def _broken_consumers(settings: Settings) -> Iterator[BrokenRule]:
    consumers = settings.consumers
    if consumers.min > consumers.max:
        yield BrokenRule(
            ("consumers.min", "consumers.max"),
            f"is {consumers.min}, more than [consumers] max = {consumers.max}",
            str(consumers.max),
        )
    if consumers.shrink_below >= consumers.grow_above:
        yield BrokenRule(
            ("consumers.shrink_below", "consumers.grow_above"),
            f"is {consumers.shrink_below}, not less than [consumers] grow_above = "
            f"{consumers.grow_above}, so consumers would come and go",
            str(consumers.grow_above // 10),
        )


def _broken_listeners(settings: Settings) -> Iterator[BrokenRule]:
    listeners = {
        "api": settings.api.bind,
        "redirect": settings.redirect.bind,
        "webhooks": settings.webhooks.bind,
        "ops": settings.ops.bind,
        "sandbox": settings.sandbox.bind,
    }
    ports: dict[str, int] = {}
    for section, bind in listeners.items():
        try:
            _, ports[section] = parse_bind(bind)
        except ValueError as error:
            yield BrokenRule((f"{section}.bind",), str(error))
    free = next(port for port in range(3001, 65_536) if port not in ports.values())
    for first, second in itertools.combinations(ports, 2):
        if ports[first] == ports[second] != 0:
            yield BrokenRule(
                (f"{second}.bind", f"{first}.bind"),
                f"uses port {ports[second]}, which [{first}] bind uses already",
                f"127.0.0.1:{free}",
            )


def _broken_addresses(settings: Settings) -> Iterator[BrokenRule]:
    if not settings.var_dir:
        yield BrokenRule(("var_dir",), "must not be empty")
    for proxy in settings.http.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            yield BrokenRule(
                ("http.trusted_proxies",),
                f"must hold addresses and networks only ({error})",
            )
    # The value itself is never shown: a mistyped URL may still hold a password.
    if not _has_scheme(settings.database.url, "postgresql", "postgres"):
        yield BrokenRule(
            ("database.url",),
            "must begin with postgresql:// or postgres://",
        )
    if not _has_scheme(settings.redis.url, "redis", "rediss", "unix"):
        yield BrokenRule(
            ("redis.url",),
            "must begin with redis://, rediss:// or unix://",
        )


def _broken_cluster(settings: Settings) -> Iterator[BrokenRule]:
    if not settings.redis.cluster:
        return
    if not settings.redis.url:
        # Carrying on in memory would keep from each other daemons that were meant to share.
        yield BrokenRule(
            ("redis.url", "redis.cluster"),
            "is not set, and [redis] cluster = true says that there is a cluster",
        )
    elif _has_scheme(settings.redis.url, "unix"):
        yield BrokenRule(
            ("redis.url", "redis.cluster"),
            "names a socket of this machine, and the nodes of a cluster ([redis] cluster = true) "
            "are reached by host and port",
            "redis://127.0.0.1:7000",
        )


def _has_scheme(url: str, *schemes: str) -> bool:
    return not url or url.startswith(tuple(f"{scheme}://" for scheme in schemes))


def _broken_token_keys(settings: Settings) -> Iterator[BrokenRule]:
    if 0 < len(settings.api.jwt_secret.encode()) < 32:
        yield BrokenRule(("api.jwt_secret",), "must be 32 bytes or longer")
    if settings.api.jwt_secret and settings.api.jwks_file:
        yield BrokenRule(
            ("api.jwks_file", "api.jwt_secret"),
            "is set beside [api] jwt_secret; tokens are signed one way or the other",
        )


def _broken_senders(settings: Settings) -> Iterator[BrokenRule]:
    for section in SENDER_SECTIONS:
        source: SourceSettings = getattr(settings, section)
        if problem := _broken_networks(source.allowed_addresses):
            yield BrokenRule((f"{section}.allowed_addresses",), problem, "52.66.75.174,10.0.0.0/8")
    alias = settings.shiprocket.alias
    if alias and not _PATH_PART.fullmatch(alias):
        yield BrokenRule(("shiprocket.alias",), "must be one part of a path, without slashes")
    elif alias in (*SENDER_SECTIONS, "generic", "health", "ready"):
        yield BrokenRule(("shiprocket.alias",), f"is {alias!r}, which is somebody else's path")
    for name, generic in settings.generic_webhooks.items():
        problem = _broken_generic(name, generic) or _broken_networks(generic.allowed_addresses)
        if problem:
            yield BrokenRule(("generic_webhooks",), f"{name!r} {problem}")


def _broken_networks(addresses: tuple[str, ...]) -> str:
    try:
        for address in addresses:
            ipaddress.ip_network(address)
    except ValueError as error:
        return f"must hold addresses and networks only ({error})"
    return ""


def _broken_generic(name: str, generic: GenericSettings) -> str:
    if not _PATH_PART.fullmatch(name):
        return "must be a name of letters, digits, - and _: it is the last part of a path"
    if not any(generic.secrets):
        return "has no secret in secrets"
    headers = {
        "signature_header": generic.signature_header,
        "timestamp_header": generic.timestamp_header,
        "id_header": generic.id_header,
        "type_header": generic.type_header,
    }
    for field, header in headers.items():
        # All but the first may be left out. What is there is not shown: it may be a secret, astray.
        if (header or field == "signature_header") and not _HEADER_NAME.fullmatch(header):
            return f"has no name of a header in {field}: letters, digits and - without spaces"
    placeholders = set(_PLACEHOLDER.findall(generic.signed))
    if "body" not in placeholders or placeholders - {"body", "timestamp", "id"}:
        return f"signs {generic.signed!r}; that must hold {{body}}, {{timestamp}} and {{id}} only"
    if generic.timestamp_header and "timestamp" not in placeholders:
        return "names a timestamp_header and does not sign {timestamp}: anybody could write it"
    if "timestamp" in placeholders and not generic.timestamp_header:
        return "signs {timestamp} and names no timestamp_header"
    if "id" in placeholders and not generic.id_header:
        return "signs {id} and names no id_header"
    # A sender must not be able to say what only the intake and the redirector can know.
    channels = [name for name in CHANNELS if name not in ("webhooks", "clicks")]
    if generic.channel and generic.channel not in channels:
        return f"names the channel {generic.channel!r}; there are: {', '.join(channels)}"
    return ""


def _missing_in_production(settings: Settings) -> Iterator[BrokenRule]:
    if not settings.database.url:
        yield BrokenRule(
            ("database.url", "env"),
            'is not set, and env = "production" does not start the embedded PostgreSQL: '
            "set DATABASE_URL, or DATABASE_URL_FILE to a file that holds it",
        )
    if not settings.redirect.stats_token:
        yield BrokenRule(
            ("redirect.stats_token", "env"),
            'is not set, and env = "production" does not leave /stats open to everybody: set '
            "COUPONFLOW_REDIRECT_STATS_TOKEN, or COUPONFLOW_REDIRECT_STATS_TOKEN_FILE to a file "
            "that holds it",
        )
    if not settings.api.jwt_secret and not settings.api.jwks_file:
        yield BrokenRule(
            ("api.jwt_secret", "env"),
            'is not set, and env = "production" does not make a secret of its own: set '
            "COUPONFLOW_API_JWT_SECRET, or COUPONFLOW_API_JWT_SECRET_FILE to a file that holds it, "
            "or [api] jwks_file",
        )
