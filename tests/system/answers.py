"""What the daemon answers and its commands print, as far as tests look at it."""

import msgspec


class HealthCheck(msgspec.Struct):
    ok: bool
    detail: str


class Readiness(msgspec.Struct):
    """What /ready answers."""

    status: str
    checks: dict[str, HealthCheck]

    @property
    def failing(self) -> set[str]:
        return {name for name, check in self.checks.items() if not check.ok}


class StatsTop(msgspec.Struct):
    merchant: str
    clicks: int


class StatsHour(msgspec.Struct):
    hour: str
    clicks: int


class Stats(msgspec.Struct):
    """What /stats answers."""

    total: int
    last_hour: int
    by_hour: list[StatsHour]
    by_verdict: dict[str, int]
    top_offers: list[StatsTop]
    top_merchants: list[StatsTop]
    stale: bool = False


class AuditFinding(msgspec.Struct):
    name: str
    ok: bool
    offenders: list[dict[str, str]]


class AuditReport(msgspec.Struct):
    """What `couponflow audit --json` prints."""

    ok: bool
    findings: list[AuditFinding]


class QueueNumbers(msgspec.Struct):
    depth: int
    in_flight: int
    acknowledged: int


class QueueState(msgspec.Struct):
    statistics: QueueNumbers
    dead_letters: int


class QueueStats(msgspec.Struct):
    """What `couponflow queue stats --json` prints."""

    channels: dict[str, QueueState]


class CheckItem(msgspec.Struct):
    name: str
    ok: bool
    detail: str


class CheckReport(msgspec.Struct):
    """What `couponflow check --json` prints."""

    ok: bool
    checks: list[CheckItem]


class MigrationItem(msgspec.Struct):
    name: str
    applied_at: str | None


class MigrationReport(msgspec.Struct):
    """What `couponflow migrate --status --json` prints."""

    migrations: list[MigrationItem]
