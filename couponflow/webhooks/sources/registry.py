"""The senders that are set up, and the path each of them calls."""

from collections.abc import Callable, Iterable, Mapping

from couponflow.config import Settings
from couponflow.webhooks.contract import Source
from couponflow.webhooks.sources.admitad import admitad_source
from couponflow.webhooks.sources.cj import cj_source
from couponflow.webhooks.sources.cuelinks import cuelinks_source
from couponflow.webhooks.sources.easypost import EasypostSource
from couponflow.webhooks.sources.generic import GenericSource
from couponflow.webhooks.sources.msg91 import Msg91Source
from couponflow.webhooks.sources.qstash import QstashSource
from couponflow.webhooks.sources.razorpay import RazorpaySource
from couponflow.webhooks.sources.sendgrid import SendgridSource
from couponflow.webhooks.sources.shiprocket import ShiprocketSource
from couponflow.webhooks.sources.stripe import StripeSource
from couponflow.webhooks.sources.vcommission import vcommission_source

_QSTASH_PATH = "api/webhook"


def known_sources(settings: Settings) -> dict[str, Source]:
    """Every sender there is, by its name; raises `ValueError` for unusable settings.

    One without a secret believes nobody, but translates what was believed before, or elsewhere.
    """
    return {source.name: source for source, _ in _sources(settings)}


def open_sources(settings: Settings) -> dict[str, Source]:
    """Those of them that have a secret."""
    return {source.name: source for source, is_on in _sources(settings) if is_on}


def _sources(settings: Settings) -> list[tuple[Source, bool]]:
    known: list[tuple[Iterable[str], Callable[[], Source]]] = [
        (settings.razorpay.webhook_secret, lambda: RazorpaySource(settings.razorpay)),
        (settings.stripe.webhook_secret, lambda: StripeSource(settings.stripe)),
        (settings.sendgrid.webhook_public_key, lambda: SendgridSource(settings.sendgrid)),
        (settings.msg91.webhook_token, lambda: Msg91Source(settings.msg91)),
        (
            (settings.qstash.current_signing_key, settings.qstash.next_signing_key),
            lambda: QstashSource(settings.qstash),
        ),
        (settings.easypost.webhook_secret, lambda: EasypostSource(settings.easypost)),
        (settings.shiprocket.webhook_token, lambda: ShiprocketSource(settings.shiprocket)),
        (settings.admitad.postback_secret, lambda: admitad_source(settings.admitad)),
        (settings.vcommission.postback_secret, lambda: vcommission_source(settings.vcommission)),
        (settings.cuelinks.postback_secret, lambda: cuelinks_source(settings.cuelinks)),
        (settings.cj.postback_secret, lambda: cj_source(settings.cj)),
    ]
    return [
        *((open_source(), any(secrets)) for secrets, open_source in known),
        *(
            (GenericSource(name, each), any(each.secrets))
            for name, each in settings.generic_webhooks.items()
        ),
    ]


def paths(settings: Settings, sources: Mapping[str, Source]) -> dict[str, Source]:
    """Which source is meant by the beginning of a path, without its first slash."""
    found = {_QSTASH_PATH if name == "qstash" else name: source for name, source in sources.items()}
    alias = settings.shiprocket.alias.strip("/")
    if alias and "shiprocket" in sources:
        # Whatever an operator calls it, it takes nobody else's path.
        found.setdefault(alias, sources["shiprocket"])
    return found
