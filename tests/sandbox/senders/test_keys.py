"""Keys are made from a seed, and a daemon is told how to believe them."""

import base64
import random

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from couponflow.config import SOURCE_SECRETS
from couponflow.sandbox.senders.keys import demo_keys, settings_of


def test_the_same_seed_makes_the_same_keys_and_another_seed_makes_others() -> None:
    first, same, other = (settings_of(demo_keys(random.Random(seed))) for seed in (1, 1, 2))
    assert first == same
    assert not set(first.values()) & set(other.values())


def test_every_sender_is_set_up_by_its_customary_variable() -> None:
    settings = settings_of(demo_keys(random.Random(1)))
    assert set(settings) == {*SOURCE_SECRETS.values()} - {"QSTASH_NEXT_SIGNING_KEY"}
    assert all(len(secret) >= 32 for secret in settings.values())
    assert settings["STRIPE_WEBHOOK_SECRET"].startswith("whsec_")


def test_sendgrids_public_key_is_shown_as_sendgrid_shows_it() -> None:
    keys = demo_keys(random.Random(1))
    shown = settings_of(keys)["SENDGRID_WEBHOOK_PUBLIC_KEY"]
    loaded = load_der_public_key(base64.b64decode(shown))
    assert len(shown) == 124
    assert isinstance(loaded, ec.EllipticCurvePublicKey)
    assert loaded.public_numbers() == keys.sendgrid_private_key.public_key().public_numbers()
