"""The real daemon as a child process, handled as an operator would."""

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import anyio
import msgspec
import psycopg
from anyio.abc import Process

from couponflow.config import VARIABLES
from couponflow.kernel.postgres_socket import running_server, url_of
from tests.system.answers import AuditReport, Readiness, Stats
from tests.system.raw_http import Answer, get, is_free
from tests.system.waiting import until

READY_SECONDS = 40.0
EXIT_SECONDS = 40.0
COMMAND_SECONDS = 40.0
SETTLE_SECONDS = 40.0
_STDERR_SHOWN = 6000

# Below the range that systems give to outgoing connections, so that no client of a daemon that is
# down gets its port; a stretch for each test process.
_ports = itertools.count(10_000 + os.getpid() % 140 * 150)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended, and how long after it was told to."""

    code: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CommandResult:
    code: int
    out: str
    err: str


class DaemonProcess:
    """`couponflow run` on ports and a folder of its own; starts as often as it is told to."""

    def __init__(
        self,
        var: Path,
        *,
        roles: str = "all",
        demo: bool = True,
        traffic: bool = False,
        environment: Mapping[str, str] | None = None,
        observed_database_url: str = "",
        program: Sequence[str] = ("-m", "couponflow"),
    ) -> None:
        """`program` is what Python runs in place of couponflow, with the same arguments."""
        self.var = var
        self._program = program
        self._observed_database_url = observed_database_url
        self.redirects = "redirect" in roles or roles == "all"
        self.redirect_port, self.ops_port, sandbox_port, self.api_port, self.webhooks_port = (
            _next_port() for _ in range(5)
        )
        self._arguments = ["run", f"--roles={roles}"]
        self._arguments += ["--demo"] * demo + ["--traffic"] * traffic
        self.environment = {
            "COUPONFLOW_VAR_DIR": str(var),
            "COUPONFLOW_REDIRECT_BIND": f"127.0.0.1:{self.redirect_port}",
            "COUPONFLOW_REDIRECT_RATE_LIMIT_PER_MINUTE": "0",
            "COUPONFLOW_OPS_BIND": f"127.0.0.1:{self.ops_port}",
            "COUPONFLOW_API_BIND": f"127.0.0.1:{self.api_port}",
            "COUPONFLOW_WEBHOOKS_BIND": f"127.0.0.1:{self.webhooks_port}",
            "COUPONFLOW_SANDBOX_BIND": f"127.0.0.1:{sandbox_port}",
            **(environment or {}),
        }
        self._process: Process | None = None
        self._killed = False
        self._stderr_path = var.with_name(f"{var.name}.stderr")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.kill()
            if self._killed:
                await self._embedded_postgres_ended()

    @property
    def redirect_url(self) -> str:
        return f"http://127.0.0.1:{self.redirect_port}"

    @property
    def webhooks_url(self) -> str:
        return f"http://127.0.0.1:{self.webhooks_port}"

    @property
    def ops_url(self) -> str:
        return f"http://127.0.0.1:{self.ops_port}"

    @property
    def database_url(self) -> str:
        """Of the configured PostgreSQL, or of the embedded one, which must be up then."""
        configured = self.environment.get("DATABASE_URL")
        if configured:
            return configured
        running = running_server(self.var / "postgres")
        assert running is not None, "the embedded PostgreSQL is not up"
        return url_of(running.sockets)

    @property
    def observed_database_url(self) -> str:
        """Where tests look and write: around a broken network, if the daemon's way leads there."""
        return self._observed_database_url or self.database_url

    @property
    def stderr(self) -> str:
        """All that it has logged since the first start."""
        return self._stderr_path.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, and return when /ready answers 200."""
        await self.launch()
        await self.ready()

    async def launch(self) -> None:
        """Start it, and do not wait."""
        assert not self.running
        self._killed = False
        self.var.parent.mkdir(parents=True, exist_ok=True)
        with self._stderr_path.open("ab") as stderr:
            self._process = await anyio.open_process(
                [sys.executable, *self._program, *self._arguments],
                stdin=None,
                stdout=stderr,
                stderr=stderr,
                cwd=self.var.parent,
                env=_clean_environment(self.environment),
                start_new_session=True,
            )

    async def ready(self) -> None:
        """Return when /ready of the redirect port, or of the operators', answers 200."""
        port = self.redirect_port if self.redirects else self.ops_port

        async def answers_ready() -> bool:
            assert self.running, "it has exited"
            with contextlib.suppress(OSError):
                return (await get(port, "/ready")).status == 200
            return False

        with self.shown_on_failure(READY_SECONDS):
            await until(answers_ready, seconds=READY_SECONDS)

    async def kill(self) -> None:
        """kill -9, unless it has ended by itself."""
        process = self._process
        if process is None:
            return
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            self._killed = True
        await process.wait()
        await process.aclose()

    async def _embedded_postgres_ended(self) -> None:
        """Return when the embedded PostgreSQL, if there is one, has followed a killed daemon."""

        async def ended() -> bool:
            return running_server(self.var / "postgres") is None

        await until(ended, seconds=EXIT_SECONDS)

    async def restart(self) -> None:
        """kill -9, and start again on the same folder."""
        await self.kill()
        await self.start()

    async def terminate(self) -> Ended:
        """SIGTERM, and wait for the end."""
        self.send_signal(signal.SIGTERM)
        return await self.ended()

    def send_signal(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Send a signal to the daemon, or as Ctrl-C does, to its whole process group."""
        assert self._process is not None
        if to_group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    async def ended(self) -> Ended:
        """Wait for the end, without doing anything for it."""
        assert self._process is not None
        begun_at = anyio.current_time()
        with self.shown_on_failure(EXIT_SECONDS):
            code = await self._process.wait()
        return Ended(code, anyio.current_time() - begun_at)

    async def says(self, text: str) -> None:
        """Return once its log holds `text`."""

        async def has_said() -> bool:
            assert self.running, "it has exited"
            return text in self.stderr

        with self.shown_on_failure(SETTLE_SECONDS):
            await until(has_said, seconds=SETTLE_SECONDS)

    async def get(
        self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET"
    ) -> Answer:
        """Ask on the redirect port."""
        return await get(self.redirect_port, path, headers, method=method)

    async def readiness(self, *, ops: bool = True) -> Readiness:
        answer = await get(self.ops_port if ops else self.redirect_port, "/ready")
        return msgspec.json.decode(answer.body, type=Readiness)

    async def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels, as in `couponflow_role_up{role="clicks"}`."""
        answer = await get(self.ops_port, "/metrics")
        assert answer.status == 200, answer
        samples = (
            line.rpartition(" ")
            for line in answer.body.decode().splitlines()
            if not line.startswith("#")
        )
        return {name: float(value) for name, _, value in samples}

    async def stats(self) -> Stats:
        answer = await self.get("/stats")
        assert answer.status == 200, answer
        return msgspec.json.decode(answer.body, type=Stats)

    async def command(self, *arguments: str) -> CommandResult:
        """Run `couponflow` with these arguments in the daemon's environment."""
        with anyio.fail_after(COMMAND_SECONDS):
            done = await anyio.run_process(
                [sys.executable, "-m", "couponflow", *arguments],
                check=False,
                cwd=self.var.parent,
                env=_clean_environment(self.environment),
            )
        return CommandResult(done.returncode, done.stdout.decode(), done.stderr.decode())

    async def audit(self) -> None:
        """Fail unless every invariant holds; the daemon may be up or down."""
        result = await self.command("audit", "--json")
        assert result.out, result.err
        report = msgspec.json.decode(result.out, type=AuditReport)
        assert report.findings
        broken = [finding for finding in report.findings if not finding.ok]
        assert broken == [], broken
        assert (report.ok, result.code) == (True, 0)

    async def rows(self, query: str) -> Sequence[tuple[object, ...]]:
        """What a query gives, straight from PostgreSQL."""
        connecting = psycopg.AsyncConnection.connect(self.observed_database_url, autocommit=True)
        async with await connecting as connection:
            cursor = await connection.execute(query.encode())
            return await cursor.fetchall() if cursor.description else []

    async def stored(self, click_ids: Sequence[str]) -> None:
        """Return once each of these clicks is a row, exactly one; fails if that does not happen."""

        async def none_is_missing() -> bool:
            return set(click_ids) <= set(await self.stored_click_ids())

        with self.shown_on_failure(SETTLE_SECONDS):
            await until(none_is_missing, seconds=SETTLE_SECONDS)
        rows = await self.stored_click_ids()
        assert len(rows) == len(set(rows))
        assert len(click_ids) == len(set(click_ids))

    async def stored_click_ids(self) -> list[str]:
        rows = await self.rows("select external_click_id::text from affiliate_clicks")
        return [str(row[0]) for row in rows]

    async def settled(self) -> Stats:
        """Wait until the journal and the channel are empty; return /stats, equal to the rows."""

        async def nothing_waits() -> bool:
            metrics = await self.metrics()
            depth = metrics['couponflow_queue_depth{channel="clicks"}']
            return metrics["couponflow_journal_backlog_bytes"] == depth == 0

        async def statistics_are_live() -> bool:
            return (await self.stats()).total == await self.count_rows()

        with self.shown_on_failure(SETTLE_SECONDS):
            await until(nothing_waits, seconds=SETTLE_SECONDS)
            await until(statistics_are_live, seconds=SETTLE_SECONDS)
        return await self.stats()

    async def count_rows(self) -> int:
        rows = await self.rows("select count(*) from affiliate_clicks")
        return int(str(rows[0][0]))

    @contextlib.contextmanager
    def shown_on_failure(self, seconds: float) -> Iterator[None]:
        """Allow so many seconds; a failure shows the end of what the daemon has logged."""
        try:
            with anyio.fail_after(seconds + 1):
                yield
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(
                f"{error or 'too late'} after up to {seconds:g} s; the daemon's last words:\n"
                f"{self.stderr[-_STDERR_SHOWN:]}"
            ) from error


def _next_port() -> int:
    return next(port for port in _ports if is_free(port))


def _clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with no setting of couponflow's in it but these."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("COUPONFLOW_") and name not in VARIABLES
    }
    return {**inherited, **settings}
