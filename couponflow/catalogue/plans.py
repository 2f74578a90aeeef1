"""What importing merchants, offers and users have each for themselves."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Generic, Protocol, TypeVar

from couponflow.catalogue.csv_records import CsvRecord
from couponflow.catalogue.fields import shown
from couponflow.catalogue.rows import (
    MERCHANT_COLUMNS,
    OFFER_COLUMNS,
    USER_COLUMNS,
    MerchantRow,
    OfferRow,
    UserRow,
    parse_merchant,
    parse_offer,
    parse_user,
)
from couponflow.catalogue.store import (
    EmailOwner,
    Kind,
    read_email_owners,
    read_merchant_ids,
    stage_merchants,
    stage_offers,
    stage_users,
)
from couponflow.kernel.database import Connection

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Candidate(Generic[R]):
    """A row on its way in; it may be taken only while `problems` is empty."""

    record: CsvRecord
    row: R
    problems: list[str]


class Plan(Protocol[R]):
    """The steps of an import that differ by what is imported."""

    @property
    def kind(self) -> Kind: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def unique_columns(self) -> tuple[str, ...]:
        """The columns whose values come once in a file."""
        ...

    async def prepare(self, connection: Connection) -> None:
        """Read what the checks need from the database."""
        ...

    def parse(self, fields: Sequence[str], problems: list[str]) -> R:
        """Make a row of fields in the order of `columns`, adding what is wrong to `problems`."""
        ...

    async def check(self, connection: Connection, candidates: Sequence[Candidate[R]]) -> None:
        """Add the problems that only the database knows of."""
        ...

    def unique_values(self, row: R) -> tuple[str, ...]:
        """What the row, once checked, has in `unique_columns`; empty for nothing."""
        ...

    async def stage(self, connection: Connection, rows: Iterable[R]) -> None:
        """Add rows without problems to the staging table."""
        ...


@dataclass(frozen=True, slots=True)
class MerchantsPlan:
    """Merchants are known by their slug."""

    new_id: Callable[[], str]
    kind: Kind = "merchants"
    columns: tuple[str, ...] = MERCHANT_COLUMNS
    unique_columns: tuple[str, ...] = ("slug",)

    async def prepare(self, connection: Connection) -> None:
        pass

    def parse(self, fields: Sequence[str], problems: list[str]) -> MerchantRow:
        return parse_merchant(fields, self.new_id(), problems)

    async def check(
        self, connection: Connection, candidates: Sequence[Candidate[MerchantRow]]
    ) -> None:
        pass

    def unique_values(self, row: MerchantRow) -> tuple[str, ...]:
        return (row.slug,)

    async def stage(self, connection: Connection, rows: Iterable[MerchantRow]) -> None:
        await stage_merchants(connection, rows)


@dataclass(frozen=True, slots=True)
class OffersPlan:
    """Offers are known by their id and need their merchant in the database."""

    kind: Kind = "offers"
    columns: tuple[str, ...] = OFFER_COLUMNS
    unique_columns: tuple[str, ...] = ("offer_uuid",)
    _merchant_ids: dict[str, str] = field(default_factory=dict)
    _unknown_slugs: dict[str, str] = field(default_factory=dict)

    async def prepare(self, connection: Connection) -> None:
        self._merchant_ids.update(await read_merchant_ids(connection))

    def parse(self, fields: Sequence[str], problems: list[str]) -> OfferRow:
        row = parse_offer(fields, problems)
        if row.merchant_slug and row.merchant_slug not in self._merchant_ids:
            problems.append(self._unknown(row.merchant_slug))
        return row

    async def check(
        self, connection: Connection, candidates: Sequence[Candidate[OfferRow]]
    ) -> None:
        pass

    def unique_values(self, row: OfferRow) -> tuple[str, ...]:
        return (row.offer_id,)

    async def stage(self, connection: Connection, rows: Iterable[OfferRow]) -> None:
        await stage_offers(connection, rows, self._merchant_ids)

    def _unknown(self, slug: str) -> str:
        # Looking for a likely slug is slow, and a file tends to repeat its mistakes.
        if slug not in self._unknown_slugs:
            close = get_close_matches(slug, self._merchant_ids, n=1)
            hint = f"did you mean {close[0]}?" if close else "import the merchant first"
            self._unknown_slugs[slug] = (
                f"merchant_slug {shown(slug)} is not a known merchant: {hint}"
            )
        return self._unknown_slugs[slug]


@dataclass(frozen=True, slots=True)
class UsersPlan:
    """Users are known by their id, and an e-mail belongs to one of them."""

    kind: Kind = "users"
    columns: tuple[str, ...] = USER_COLUMNS
    unique_columns: tuple[str, ...] = ("user_uuid", "email")
    _owners: dict[str, EmailOwner] = field(default_factory=dict)

    async def prepare(self, connection: Connection) -> None:
        pass

    def parse(self, fields: Sequence[str], problems: list[str]) -> UserRow:
        return parse_user(fields, problems)

    async def check(self, connection: Connection, candidates: Sequence[Candidate[UserRow]]) -> None:
        """An address counts as taken until the user who has it has lost it in the database."""
        emails = [email for candidate in candidates if (email := candidate.row.email)]
        self._owners.clear()
        self._owners.update(await read_email_owners(connection, emails))
        for candidate in candidates:
            owner = self._owners.get(candidate.row.email or "")
            if owner and owner.user_id and owner.user_id != candidate.row.user_id:
                candidate.problems.append(f"email belongs to another user, {owner.user_id}")

    def unique_values(self, row: UserRow) -> tuple[str, ...]:
        return (row.user_id, self._owners[row.email].folded if row.email else "")

    async def stage(self, connection: Connection, rows: Iterable[UserRow]) -> None:
        await stage_users(connection, rows)
