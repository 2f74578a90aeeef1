"""One batch of clicks into the database, whatever is in it."""

from collections.abc import Mapping, Sequence

import msgspec
import psycopg
import structlog

from couponflow.clicks import store
from couponflow.clicks.partitions import PartitionMissing, Partitions
from couponflow.kernel.clock import Clock
from couponflow.kernel.database import Database
from couponflow.kernel.dead_letters import DeadLetter, bury
from couponflow.kernel.identifiers import Uuid7Generator, is_canonical_uuid
from couponflow.kernel.message_metrics import ChannelCounts
from couponflow.messages import Click

_log = structlog.get_logger("couponflow.clicks")


class BatchWriter:
    """Stores batches; a click that cannot be stored is buried alone, with the reason."""

    def __init__(
        self,
        database: Database,
        partitions: Partitions,
        ids: Uuid7Generator,
        clock: Clock,
        metrics: ChannelCounts,
    ) -> None:
        self._database = database
        self._partitions = partitions
        self._ids = ids
        self._clock = clock
        self._metrics = metrics

    async def write(self, clicks: Sequence[Click], attempt: int) -> None:
        """Store or bury every click of a batch; when it returns, each is in one place or the other.

        Raises `DatabaseAway` or `PartitionMissing` (and whatever else is worth trying again) having
        changed nothing that a second call would not leave as it is.
        """
        good, strays = await self._sort(clicks)
        if strays:
            await self._bury(strays, attempt)
        if good:
            await self._partitions.make_for([click.clicked_at for click in good])
            await self._store(good, attempt)

    async def _sort(self, clicks: Sequence[Click]) -> tuple[list[Click], list[tuple[Click, str]]]:
        """Tell clicks that belong to an offer from those that do not."""
        wanted = {click.offer_id for click in clicks}
        async with self._database.connection() as connection:
            # One id that is no UUID would spoil the question about all the others.
            merchants = await store.known_offers(connection, filter(is_canonical_uuid, wanted))
        if merchants.items() == {(click.offer_id, click.merchant_id) for click in clicks} and (
            self._partitions.are_plausible(click.clicked_at for click in clicks)
        ):
            return list(clicks), []
        good: list[Click] = []
        strays: list[tuple[Click, str]] = []
        for click in clicks:
            reason = self._why_stray(click, merchants)
            if reason:
                strays.append((click, reason))
            else:
                good.append(click)
        return good, strays

    def _why_stray(self, click: Click, merchants: Mapping[str, str]) -> str:
        merchant_id = merchants.get(click.offer_id)
        if merchant_id is None:
            return f"offer {click.offer_id} does not exist"
        if merchant_id != click.merchant_id:
            return f"offer {click.offer_id} is of merchant {merchant_id}"
        if not self._partitions.are_plausible((click.clicked_at,)):
            return f"clicked_at {click.clicked_at} is not plausible"
        return ""

    async def _store(self, clicks: Sequence[Click], attempt: int) -> None:
        """Insert a batch; if one click in it cannot be stored, close in on it by halves."""
        try:
            new = await self._insert_into_partitions(clicks)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            if len(clicks) == 1:
                await self._bury([(clicks[0], str(error).partition("\n")[0])], attempt)
                return
            middle = len(clicks) // 2
            await self._store(clicks[:middle], attempt)
            await self._store(clicks[middle:], attempt)
            return
        self._metrics.done += new
        self._metrics.duplicate += len(clicks) - new

    async def _insert_into_partitions(self, clicks: Sequence[Click]) -> int:
        """Insert a batch; if a partition was dropped since it was last looked for, make it anew."""
        try:
            return await self._insert(clicks)
        except psycopg.errors.CheckViolation as error:
            if not store.is_partition_missing(error):
                raise
        self._partitions.forget()
        await self._partitions.make_for([click.clicked_at for click in clicks])
        try:
            return await self._insert(clicks)
        except psycopg.errors.CheckViolation as error:
            if not store.is_partition_missing(error):
                raise
            # Not an IntegrityError any more: no click is at fault, none may be buried for it.
            raise PartitionMissing(
                f"{error}; make the partition or drop what overlaps it"
            ) from error

    async def _insert(self, clicks: Sequence[Click]) -> int:
        """Insert a batch on the assumption that it is new, which only a replay proves wrong."""
        try:
            async with self._database.transaction() as connection:
                await store.insert_new_clicks(connection, clicks)
        except psycopg.errors.UniqueViolation:
            async with self._database.transaction() as connection:
                return await store.insert_missing_clicks(connection, clicks)
        return len(clicks)

    async def _bury(self, strays: Sequence[tuple[Click, str]], attempt: int) -> None:
        now = self._clock.now()
        letters = [
            DeadLetter(
                id=self._ids.make(now),
                channel=Click.channel,
                message_id=click.click_id,
                message=msgspec.json.encode(click),
                reason=reason,
                attempts=attempt,
            )
            for click, reason in strays
        ]
        async with self._database.transaction() as connection:
            await store.commit_durably(connection)
            await bury(connection, letters)
        self._metrics.dead += len(letters)
        _log.warning("clicks buried", clicks=len(letters), reason=strays[0][1])
