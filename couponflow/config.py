"""Settings: what an operator can set.

Every `[section] key` is also the variable `COUPONFLOW_SECTION_KEY`. `config/couponflow.toml`
documents each key; the defaults here and there are held equal by a test. `config_rules.py` says
what must hold between the values, and `config_loading.py` reads the file and the environment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from couponflow.config_sources import (
    CountOrOff,
    EasypostSettings,
    GenericSettings,
    Msg91Settings,
    NetworkSettings,
    QstashSettings,
    RazorpaySettings,
    SecondsOrOff,
    SendgridSettings,
    ShiprocketSettings,
    StripeSettings,
)

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


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
    cluster: bool = False
    """The URL names one node of a Redis Cluster; the others are found through it."""
    timeout_seconds: Seconds = 5.0
    """How long to wait for an answer before Redis counts as away."""
    claim_idle_seconds: Seconds = 30.0
    """A consumer not heard of for so long is dead: its entries go to another."""


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
    checkpoint: Literal["handed-over", "acknowledged"] = "handed-over"
    """When a click leaves the journal: when Redis has it, or when it is in PostgreSQL."""


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


class OutboxSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    batch_rows: Annotated[int, Meta(ge=1, le=5_000)] = 500
    """Messages claimed at once."""
    poll_seconds: Seconds = 1.0
    """How often to look for due messages if PostgreSQL does not notify of one sooner."""
    lease_seconds: Annotated[float, Meta(ge=1)] = 30.0
    """A worker not heard of for so long is dead: its messages go to another."""
    verify_seconds: Seconds = 15.0
    """How often to look whether the streams still have what they were given."""
    done_days: Annotated[int, Meta(ge=1, le=3_650)] = 7
    """How long it is remembered that a message was done: no older one may arrive again."""


class ConsumersSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    min: Count = 2
    """Consumers of a channel in one daemon, while little waits."""
    max: Count = 5
    """Consumers of a channel in one daemon, at most."""
    grow_above: Count = 1_000
    """One more consumer is started while more messages wait."""
    shrink_below: CountOrOff = 100
    """One consumer is let go while fewer messages wait."""
    concurrency: Count = 100
    """Messages of a channel worked on at once in one daemon."""


class WebhooksSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bind: str = "0.0.0.0:3002"
    """Where payment gateways, networks and providers call: they come from outside."""
    server: Literal["granian", "hypercorn"] = "granian"
    max_connections: Count = 2048
    """The most connections open at once."""
    body_bytes: Annotated[int, Meta(ge=1_024, le=16 * 1024 * 1024)] = 1_048_576
    """A larger body is answered 413; SendGrid's batches have up to 768 KiB."""
    body_seconds: Seconds = 5.0
    """A body that has not arrived by then is answered 408."""
    store_seconds: Seconds = 4.0
    """An event that is not in PostgreSQL by then is answered 503, and sent again; Razorpay waits
    for 5 seconds."""
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 512
    """Requests of one source worked on at once; more are answered 503."""
    refusals_kept_per_minute: CountOrOff = 30
    """Requests refused that are written into `webhook_logs`, a source; the rest is counted."""
    keep_days: Annotated[int, Meta(ge=0, le=3_650)] = 90
    """Days of `webhook_logs` older than this are dropped; 0 keeps them."""
    dedup_days: Annotated[int, Meta(ge=1, le=3_650)] = 45
    """How long an event's id is remembered: one that comes again later is taken for new."""
    report_attempts: Annotated[int, Meta(ge=1, le=100)] = 10
    """How often an event is tried that tells of something not known yet, as a payment whose order
    is still to come."""
    report_first_seconds: Seconds = 2.0
    """The longest wait before the second of these attempts; it doubles, up to five minutes."""


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    bind: str = "0.0.0.0:3000"
    """Where programs call the JSON API."""
    server: Literal["granian", "hypercorn"] = "hypercorn"
    jwt_secret: str = ""
    """The HS256 secret of bearer tokens, 32 bytes or more; empty makes one in `var`."""
    jwks_file: str = ""
    """A JWKS file with the RS256 or ES256 keys of bearer tokens."""
    jwt_audience: str = ""
    """What `aud` must be; empty does not look."""
    jwt_issuer: str = ""
    """What `iss` must be; empty does not look."""


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
    webhooks_per_second: Seconds = 5.0
    """How many webhooks its simulated providers send."""


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
    outbox: OutboxSettings = OutboxSettings()
    consumers: ConsumersSettings = ConsumersSettings()
    webhooks: WebhooksSettings = WebhooksSettings()
    razorpay: RazorpaySettings = RazorpaySettings()
    stripe: StripeSettings = StripeSettings()
    sendgrid: SendgridSettings = SendgridSettings()
    msg91: Msg91Settings = Msg91Settings()
    qstash: QstashSettings = QstashSettings()
    easypost: EasypostSettings = EasypostSettings()
    shiprocket: ShiprocketSettings = ShiprocketSettings()
    admitad: NetworkSettings = NetworkSettings()
    vcommission: NetworkSettings = NetworkSettings()
    cuelinks: NetworkSettings = NetworkSettings()
    cj: NetworkSettings = NetworkSettings()
    generic_webhooks: dict[str, GenericSettings] = {}
    """Senders that need no code, by name; in the environment a JSON object."""
    api: ApiSettings = ApiSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    ops: OpsSettings = OpsSettings()
    log: LogSettings = LogSettings()
    sandbox: SandboxSettings = SandboxSettings()

    @property
    def var_path(self) -> Path:
        return Path(self.var_dir).absolute()


SOURCE_SECRETS = {
    "razorpay.webhook_secret": "RAZORPAY_WEBHOOK_SECRET",
    "stripe.webhook_secret": "STRIPE_WEBHOOK_SECRET",
    "sendgrid.webhook_public_key": "SENDGRID_WEBHOOK_PUBLIC_KEY",
    "msg91.webhook_token": "MSG91_WEBHOOK_TOKEN",
    "qstash.current_signing_key": "QSTASH_CURRENT_SIGNING_KEY",
    "qstash.next_signing_key": "QSTASH_NEXT_SIGNING_KEY",
    "easypost.webhook_secret": "EASYPOST_WEBHOOK_SECRET",
    "shiprocket.webhook_token": "SHIPROCKET_WEBHOOK_TOKEN",
    "admitad.postback_secret": "ADMITAD_POSTBACK_SECRET",
    "vcommission.postback_secret": "VCOMMISSION_POSTBACK_SECRET",
    "cuelinks.postback_secret": "CUELINKS_POSTBACK_SECRET",
    "cj.postback_secret": "CJ_POSTBACK_SECRET",
}
"""What each sender of webhooks is verified with, and the variable it is customarily in."""
ADDRESS_SECRETS = (
    "msg91.webhook_token",
    "shiprocket.webhook_token",
    "admitad.postback_secret",
    "vcommission.postback_secret",
    "cuelinks.postback_secret",
    "cj.postback_secret",
)
"""Those that we choose and that come with every call, as nothing is signed: all the proof there
is."""
SENDER_SECTIONS = tuple(dict.fromkeys(path.partition(".")[0] for path in SOURCE_SECRETS))
"""The sections of the senders, which are also their names."""

SECRETS = frozenset(
    {
        "database.url",
        "redis.url",
        "redirect.stats_token",
        "api.jwt_secret",
        "generic_webhooks",
        *SOURCE_SECRETS,
    }
)
"""Keys whose values are never printed."""

CUSTOMARY_VARIABLES = {
    "database.url": "DATABASE_URL",
    "redis.url": "REDIS_URL",
    **SOURCE_SECRETS,
}
"""Names that other programs use too; each is honoured beside the key's own variable."""

EXAMPLES: dict[str, object] = {
    "database.url": "postgresql://couponflow:password@127.0.0.1:5432/couponflow",
    "redis.url": "redis://127.0.0.1:6379/0",
    "redirect.stats_token": "the output of `openssl rand -hex 32`",
    "api.jwt_secret": "the output of `openssl rand -hex 32`",
    "api.jwks_file": "/etc/couponflow/jwks.json",
    "api.jwt_audience": "couponflow",
    "api.jwt_issuer": "https://login.example.com/",
    "http.trusted_proxies": ("10.0.0.0/8",),
    **dict.fromkeys(SOURCE_SECRETS, "what the sender's own settings page shows"),
    **dict.fromkeys(ADDRESS_SECRETS, "the output of `openssl rand -hex 32`"),
    "generic_webhooks": '{"acme": {"secrets": ["..."], "signature_header": "x-acme-signature"}}',
    "generic_webhooks.secrets": ("what the sender signs with",),
    "generic_webhooks.signature_header": "x-signature",
}
"""A right value for each key whose default is nothing, and for such fields of tables."""


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
            # A mutable default is made anew for each struct.
            made: object = (
                outer.default_factory()
                if outer.default is msgspec.NODEFAULT and outer.default_factory is not None
                else outer.default
            )
            yield Key("", outer.name, outer.type, made)


KEYS = {key.path: key for key in _every_key()}
SECTIONS = frozenset(key.section for key in KEYS.values() if key.section)
VARIABLES = {variable: key for key in KEYS.values() for variable in key.variables}
