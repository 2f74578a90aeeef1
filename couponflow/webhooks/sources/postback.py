"""Postbacks of affiliate networks: what they have in common; each network is data.

A network calls a URL that we gave it, with what happened in its parameters. It signs nothing: a
secret in the path or in a query parameter is all the proof there is, so what it says is a hint.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import msgspec

from couponflow.config_sources import NetworkSettings
from couponflow.messages import TransactionReported, TransactionStatus
from couponflow.webhooks.contract import (
    Delivery,
    EventUnreadable,
    Identity,
    Refused,
    StoredEvent,
    Translated,
)
from couponflow.webhooks.sources.checking import checked
from couponflow.webhooks.sources.postback_parameters import (
    amount,
    currency,
    folded,
    parameters_of,
    present,
)
from couponflow.webhooks.sources.tokens import (
    SECRET_PARAMETERS,
    live_tokens,
    query_tokens,
    refused_by_token,
    without_tokens,
)
from couponflow.webhooks.sources.values import clipped, moment_of, name_of

Field = Literal[
    "native_id",
    "click_ref",
    "status",
    "reward_ready",
    "kind",
    "commission",
    "sale_amount",
    "currency",
    "program_id",
    "order_id",
    "clicked_at",
    "occurred_at",
]
Kind = Literal["sale", "lead", "bonus", "other"]

_FIELDS: tuple[Field, ...] = get_args(Field)
_STATUSES: tuple[TransactionStatus, ...] = get_args(TransactionStatus)
_KINDS: Mapping[str, Kind] = {
    "sale": "sale",
    "sim sale": "sale",
    "item sale": "sale",
    "lead": "lead",
    "sim lead": "lead",
    "item lead": "lead",
    "bonus": "bonus",
    "perf inc": "bonus",
}
# A network that releases what it declines or re-checks, or what we do not understand, has released
# nothing; one that says no status has nothing else to say.
_RELEASED_FROM: frozenset[TransactionStatus] = frozenset({"pending", "confirmed"})
STAND_IN = "stand-in:"
"""What the id of a transaction begins with that its network sends without one."""


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """What a network calls things."""

    name: str
    parameters: Mapping[Field, Sequence[str]]
    """Where a field is: the first of the parameters that is there counts."""
    statuses: Mapping[str, TransactionStatus]
    """By the folded native one: `invoice raised` stands for `Invoice_Raised` as well."""
    stand_in: Sequence[Field] = ()
    """What its id is made from where it sends none; the first must be there."""


class PostbackSource:
    """One network. Raises `ValueError` for settings that cannot be."""

    methods = frozenset({"GET", "POST"})
    header_names = ("content-type",)
    secret_header_names: frozenset[str] = frozenset()

    def __init__(self, network: Network, settings: NetworkSettings) -> None:
        self.name = network.name
        self._account = settings.account
        if self._account and name_of(self._account) != self._account:
            raise ValueError(f"[{self.name}] account must be one line of at most 200 characters")
        self._tokens = live_tokens(settings.postback_secret)
        self._parameters = {**network.parameters, **_own_parameters(self.name, settings)}
        self._stand_in_fields = network.stand_in
        self._statuses = {**network.statuses, **_own_statuses(self.name, settings)}

    def verify(self, delivery: Delivery) -> Refused | None:
        given = [delivery.token, *query_tokens(delivery.query)]
        return refused_by_token(self._tokens, given)

    def identify(self, delivery: Delivery) -> Identity:
        try:
            told = self._told(delivery.query, delivery.headers, delivery.body)
        except EventUnreadable:
            return Identity("postback")
        return Identity(name_of(told.text("status")) or "postback")

    def public_query(self, delivery: Delivery) -> str:
        return without_tokens(delivery.query)

    def translate(self, event: StoredEvent) -> Sequence[Translated]:
        if not event.query and not event.body:
            # So Admitad tells that somebody has joined.
            return []
        told = self._told(event.query, event.headers, event.body)
        message = TransactionReported(
            network=self.name,
            account=self._account,
            native_id=told.text("native_id") or self._stand_in(told),
            click_ref=name_of(told.text("click_ref")),
            status=self._status(told),
            status_native=clipped(told.text("status")),
            kind=self._kind(told),
            commission=told.amount("commission"),
            sale_amount=told.amount("sale_amount"),
            currency=currency(told.text("currency")),
            program_id=name_of(told.text("program_id")),
            order_id=name_of(told.text("order_id")),
            clicked_at=moment_of(told.text("clicked_at")),
            occurred_at=moment_of(told.text("occurred_at")),
            reported_at=event.received_at,
        )
        return [Translated(checked(message))]

    def _told(self, query: str, headers: Mapping[str, str], body: bytes) -> "_Told":
        content_type = headers.get("content-type", "")
        return _Told(parameters_of(query, content_type, body), self._parameters)

    def _stand_in(self, told: "_Told") -> str:
        """An id for a transaction without one, the same whenever it is told of again.

        Raises `EventUnreadable` where it cannot be said of which transaction a postback is.
        """
        parts = [told.text(field) for field in self._stand_in_fields]
        if not parts or not parts[0]:
            fields: tuple[Field, ...] = ("native_id", *self._stand_in_fields[:1])
            names = [name for field in fields for name in self._parameters.get(field, ())]
            raise EventUnreadable(f"none of {names} says which transaction it is of")
        told_of = "\0".join(parts).encode("utf-8", "surrogatepass")
        return STAND_IN + hashlib.sha256(told_of).hexdigest()

    def _status(self, told: "_Told") -> TransactionStatus:
        native = folded(told.text("status"))
        status = self._statuses.get(native, "unknown")
        if folded(told.text("reward_ready")) != "true":
            return status
        return "payable" if not native or status in _RELEASED_FROM else status

    @staticmethod
    def _kind(told: "_Told") -> Kind:
        native = folded(told.text("kind"))
        return _KINDS.get(native, "other") if native else "sale"


class _Told:
    """The parameters of one postback, by what they are to us."""

    def __init__(self, parameters: Mapping[str, str], names: Mapping[Field, Sequence[str]]) -> None:
        self._parameters = parameters
        self._names = names

    def text(self, field: Field) -> str:
        """What it says; empty where it says nothing."""
        return present(self._parameters, self._names.get(field, ()))

    def amount(self, field: Field) -> str | None:
        found = self.text(field)
        return amount(found) if found else None


def _own_parameters(network: str, settings: NetworkSettings) -> dict[Field, list[str]]:
    own: dict[Field, list[str]] = {}
    for setting in settings.parameters:
        name, _, parameter = (part.strip() for part in setting.partition("="))
        field = next((field for field in _FIELDS if field == name), None)
        if field is None or not parameter:
            raise ValueError(
                f"[{network}] parameters must be field=parameter, with a field of {[*_FIELDS]}:"
                f" {setting!r} is not"
            )
        if parameter.lower() in SECRET_PARAMETERS:
            raise ValueError(f"[{network}] parameters: {parameter!r} is where the secret is")
        own.setdefault(field, []).append(parameter)
    return own


def _own_statuses(network: str, settings: NetworkSettings) -> dict[str, TransactionStatus]:
    own: dict[str, TransactionStatus] = {}
    for setting in settings.statuses:
        native, _, canonical = setting.rpartition("=")
        status = next((status for status in _STATUSES if status == canonical.strip()), None)
        if status is None or not folded(native):
            raise ValueError(
                f"[{network}] statuses must be native=canonical, with one of {[*_STATUSES]}:"
                f" {setting!r} is not"
            )
        own[folded(native)] = status
    return own
