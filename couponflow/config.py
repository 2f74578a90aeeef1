"""Settings: what an operator can set, and what must hold between the values.

Every `[section] key` is also the variable `COUPONFLOW_SECTION_KEY`. `config/couponflow.toml`
documents each key; the defaults here and there are held equal by a test. `config_loading.py`
reads the file and the environment.
"""

import ipaddress
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0)]
SecondsOrOff = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
CountOrOff = Annotated[int, Meta(ge=0)]


class DatabaseSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str = ""
    """PostgreSQL to use (DATABASE_URL); empty starts the embedded one in `var/postgres`."""
    pool_min: Count = 1
    """Connections kept open while nothing happens."""
    pool_max: Count = 8
    """Connections at most; whoever needs one more waits for it."""
    connect_timeout_seconds: Seconds = 5.0
    """How long to wait for a connection before PostgreSQL counts as away."""
    statement_timeout_seconds: Seconds = 30.0
    """PostgreSQL stops a statement that runs longer."""


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str = ""
    """Redis or Valkey to use (REDIS_URL); empty keeps messages in this process."""


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks whose `X-Forwarded-For` is believed."""


class RedirectSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bind: str = "0.0.0.0:3001"
    """Where shoppers' clicks and `/stats` are answered: they come from outside."""
    server: Literal["granian", "hypercorn"] = "granian"
    rate_limit_per_minute: CountOrOff = 100
    """Clicks one address may make in a minute before it is answered 429; 0 is no limit."""
    duplicate_window_seconds: SecondsOrOff = 60.0
    """Another click of a user on an offer so soon is a `duplicate`; 0 never says so."""
    cache_seconds: Seconds = 300.0
    """How old the offers in memory may be before `/ready` reports them; they still redirect."""
    poll_seconds: Seconds = 5.0
    """How often to look for changed offers if PostgreSQL does not notify of one sooner."""
    stats_token: str = ""
    """The bearer token that opens `/stats`; empty leaves it open, which production refuses."""
    max_connections: Count = 4096
    """The most connections open at once."""


class JournalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    fsync_seconds: SecondsOrOff = 1.0
    """The most a power cut can lose; 0 leaves syncing to the operating system."""
    segment_bytes: Annotated[int, Meta(ge=65_536, le=1 << 30)] = 16 * 1024 * 1024
    """A segment file is closed, and the next one begun, at this size."""
    max_bytes: Annotated[int, Meta(ge=131_072)] = 4 * 1024 * 1024 * 1024
    """All segments together; what is not yet in PostgreSQL waits within it."""


class ClicksSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    flush_seconds: Seconds = 0.5
    """The longest a click waits for others before its batch is written."""
    flush_rows: Annotated[int, Meta(ge=1, le=100_000)] = 2_000
    """Clicks in a batch at most."""
    partitions_ahead_days: Annotated[int, Meta(ge=1, le=366)] = 7
    """Daily partitions of `affiliate_clicks` made before their day comes."""


class ChannelsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    capacity: Annotated[int, Meta(ge=100)] = 20_000
    """Messages a channel holds; a publisher waits while it is full."""
    depth_alarm: Count = 15_000
    """A channel with more messages waiting shows in `/ready`."""


class ShutdownSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    deadline: Seconds = 25.0
    """Seconds from SIGTERM to exit, whatever is still going on."""


class OpsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bind: str = "127.0.0.1:9464"
    """Where `/health`, `/ready` and `/metrics` are served to operators."""
    server: Literal["granian", "hypercorn"] = "hypercorn"


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` is coloured lines on a terminal and JSON elsewhere."""


class SandboxSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bind: str = "127.0.0.1:3090"
    """Where the simulated merchants of `run --demo` answer."""
    shoppers_per_second: Seconds = 20.0
    """How many shoppers `run --demo --traffic` sends."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an operator can set; one instance a process, handed to whoever needs a part."""

    env: Literal["development", "production"] = "development"
    """`production` refuses to start without what a real installation must have."""
    var_dir: str = "./var"
    """The folder that holds what the daemon writes: the journal, the embedded PostgreSQL."""
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    http: HttpSettings = HttpSettings()
    redirect: RedirectSettings = RedirectSettings()
    journal: JournalSettings = JournalSettings()
    clicks: ClicksSettings = ClicksSettings()
    channels: ChannelsSettings = ChannelsSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    ops: OpsSettings = OpsSettings()
    log: LogSettings = LogSettings()
    sandbox: SandboxSettings = SandboxSettings()

    @property
    def var_path(self) -> Path:
        return Path(self.var_dir).absolute()


SECRETS = frozenset({"database.url", "redis.url", "redirect.stats_token"})
"""Keys whose values are never printed."""

CUSTOMARY_VARIABLES = {"database.url": "DATABASE_URL", "redis.url": "REDIS_URL"}
"""Names that other programs use too; each is honoured beside the key's own variable."""

EXAMPLES: dict[str, object] = {
    "database.url": "postgresql://couponflow:password@127.0.0.1:5432/couponflow",
    "redis.url": "redis://127.0.0.1:6379/0",
    "redirect.stats_token": "the output of `openssl rand -hex 32`",
    "http.trusted_proxies": ("10.0.0.0/8",),
}
"""A right value for each key whose default is nothing."""


@dataclass(frozen=True, slots=True)
class Key:
    """One thing that can be set: `section.name`, or a name at the top of the file."""

    section: str
    name: str
    type: object
    default: object

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables that set it, the one to recommend first."""
        own = "COUPONFLOW_" + self.path.replace(".", "_").upper()
        customary = CUSTOMARY_VARIABLES.get(self.path)
        return (customary, own) if customary else (own,)

    @property
    def written(self) -> str:
        """How the key is written about: `[section] name`."""
        return f"[{self.section}] {self.name}" if self.section else self.name

    @property
    def label(self) -> str:
        return f"{self.written} ({self.variables[0]})"

    @property
    def example(self) -> object:
        """A right value: the default, unless that is nothing."""
        return EXAMPLES.get(self.path, self.default)


def _every_key() -> Iterator[Key]:
    for outer in msgspec.structs.fields(Settings):
        if isinstance(outer.default, msgspec.Struct):
            for inner in msgspec.structs.fields(outer.default):
                yield Key(outer.name, inner.name, inner.type, inner.default)
        else:
            yield Key("", outer.name, outer.type, outer.default)


KEYS = {key.path: key for key in _every_key()}
SECTIONS = frozenset(key.section for key in KEYS.values() if key.section)
VARIABLES = {variable: key for key in KEYS.values() for variable in key.variables}


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
    yield from _broken_listeners(settings)
    yield from _broken_addresses(settings)
    if settings.env == "production":
        yield from _missing_in_production(settings)


def settings_warnings(settings: Settings) -> list[str]:
    """What the settings allow but the operator probably did not mean."""
    warnings = [
        f"[http] trusted_proxies holds {proxy}, which is every address: anybody can claim any "
        "client address in X-Forwarded-For. List only your own proxies."
        for proxy in settings.http.trusted_proxies
        if ipaddress.ip_network(proxy).prefixlen == 0
    ]
    if settings.redis.url:
        warnings.append(
            "REDIS_URL is set, but this version carries messages in memory only: "
            "the variable has no effect yet."
        )
    return warnings


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


def _broken_listeners(settings: Settings) -> Iterator[BrokenRule]:
    listeners = {
        "redirect": settings.redirect.bind,
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


def _has_scheme(url: str, *schemes: str) -> bool:
    return not url or url.startswith(tuple(f"{scheme}://" for scheme in schemes))


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
