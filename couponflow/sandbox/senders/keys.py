"""What each simulated provider signs with, and the settings of a daemon that believes it."""

import base64
import random
from collections.abc import Mapping

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from couponflow.sandbox.senders.events import NetworkName
from couponflow.sandbox.senders.made_up import token

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class SenderKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The secrets that the providers share with us, and SendGrid's own private key."""

    razorpay_secret: str
    stripe_secret: str
    sendgrid_private_key: ec.EllipticCurvePrivateKey
    msg91_token: str
    qstash_signing_key: str
    qstash_destination_url: str = "https://couponflow.example/api/webhook"
    """What publishers call our endpoint; it is signed too."""
    easypost_secret: str
    shiprocket_token: str
    network_secrets: Mapping[NetworkName, str]


def demo_keys(randomness: random.Random) -> SenderKeys:
    """Make keys of the providers' own shapes; the same randomness makes the same."""
    return SenderKeys(
        razorpay_secret=token(randomness, 32),
        stripe_secret=f"whsec_{token(randomness, 32)}",
        sendgrid_private_key=ec.derive_private_key(
            randomness.randrange(1, _P256_ORDER), ec.SECP256R1()
        ),
        msg91_token=token(randomness, 40),
        qstash_signing_key=f"sig_{token(randomness, 28)}",
        easypost_secret=token(randomness, 32),
        shiprocket_token=token(randomness, 32),
        network_secrets={
            "admitad": token(randomness, 40),
            "vcommission": token(randomness, 40),
            "cuelinks": token(randomness, 40),
            "cj": token(randomness, 40),
        },
    )


def settings_of(keys: SenderKeys) -> Mapping[str, str]:
    """The environment variables with which a daemon accepts what is signed with these keys."""
    return {
        "RAZORPAY_WEBHOOK_SECRET": keys.razorpay_secret,
        "STRIPE_WEBHOOK_SECRET": keys.stripe_secret,
        "SENDGRID_WEBHOOK_PUBLIC_KEY": sendgrid_public_key(keys),
        "MSG91_WEBHOOK_TOKEN": keys.msg91_token,
        "QSTASH_CURRENT_SIGNING_KEY": keys.qstash_signing_key,
        "EASYPOST_WEBHOOK_SECRET": keys.easypost_secret,
        "SHIPROCKET_WEBHOOK_TOKEN": keys.shiprocket_token,
        **{
            f"{network.upper()}_POSTBACK_SECRET": secret
            for network, secret in keys.network_secrets.items()
        },
    }


def sendgrid_public_key(keys: SenderKeys) -> str:
    """As SendGrid shows it: the DER of a SubjectPublicKeyInfo in base64."""
    public_key = keys.sendgrid_private_key.public_key()
    der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()
