import msgspec
import pytest

from couponflow.config import Settings
from couponflow.config_sources import (
    EasypostSettings,
    GenericSettings,
    Msg91Settings,
    NetworkSettings,
    QstashSettings,
    RazorpaySettings,
    SendgridSettings,
    ShiprocketSettings,
    StripeSettings,
)
from couponflow.webhooks.sources.registry import open_sources, paths

ACME = GenericSettings(secrets=("s",), signature_header="X-Signature")
NETWORK = NetworkSettings(postback_secret=("s",))
SENDGRID_PUBLIC_KEY = (
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+"
    "2fNNRaINXvVpiglSI8eNEc6wEA3F+g=="
)
SETTINGS = Settings(
    razorpay=RazorpaySettings(webhook_secret=("s",)),
    stripe=StripeSettings(webhook_secret=("s",)),
    sendgrid=SendgridSettings(webhook_public_key=(SENDGRID_PUBLIC_KEY,)),
    msg91=Msg91Settings(webhook_token=("s",)),
    qstash=QstashSettings(next_signing_key="s"),
    easypost=EasypostSettings(webhook_secret=("s",)),
    shiprocket=ShiprocketSettings(webhook_token=("s",)),
    admitad=NETWORK,
    vcommission=NETWORK,
    cuelinks=NETWORK,
    cj=NETWORK,
    generic_webhooks={"acme": ACME},
)
NAMES = [
    "razorpay",
    "stripe",
    "sendgrid",
    "msg91",
    "qstash",
    "easypost",
    "shiprocket",
    "admitad",
    "vcommission",
    "cuelinks",
    "cj",
    "generic/acme",
]


def test_without_a_secret_no_source_is_open() -> None:
    assert open_sources(Settings()) == {}
    nothing = Settings(
        razorpay=RazorpaySettings(webhook_secret=("",)),
        generic_webhooks={"acme": msgspec.structs.replace(ACME, secrets=())},
    )
    assert open_sources(nothing) == {}


def test_every_source_with_a_secret_is_open_under_its_name() -> None:
    sources = open_sources(SETTINGS)
    assert [source.name for source in sources.values()] == NAMES
    assert list(sources) == NAMES


def test_every_source_has_a_path() -> None:
    sources = open_sources(SETTINGS)
    plainly = {name: source for name, source in sources.items() if name != "qstash"}
    assert paths(SETTINGS, sources) == {
        **plainly,
        "api/webhook": sources["qstash"],
        "parcels": sources["shiprocket"],
    }


@pytest.mark.parametrize("alias", ["", "/", "stripe"])
def test_an_alias_can_be_left_out_and_takes_nobody_elses_path(alias: str) -> None:
    shiprocket = ShiprocketSettings(webhook_token=("s",), alias=alias)
    settings = msgspec.structs.replace(SETTINGS, shiprocket=shiprocket)
    sources = open_sources(settings)
    found = paths(settings, sources)
    assert found["stripe"] is sources["stripe"]
    assert len(found) == len(sources)
