import hmac
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import anyio
import jwt
import jwt.algorithms
import jwt.utils
import pytest
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from couponflow.config import ApiSettings, Settings
from couponflow.kernel.clock import ManualClock, SystemClock
from couponflow.kernel.tokens import (
    JWKS_RECHECK_SECONDS,
    MAX_TOKEN_BYTES,
    SECRET_FILE,
    Identity,
    TokenKeyBroken,
    TokenRefused,
    TokensNotMintable,
    mint,
    open_tokens,
)

SECRET = "a secret of the tests, long enough to sign with"
CLOCK = SystemClock()
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def settings_with(
    folder: Path = Path("unused"),
    *,
    jwt_secret: str = SECRET,
    jwks_file: str = "",
    jwt_audience: str = "",
    jwt_issuer: str = "",
) -> Settings:
    api = ApiSettings(
        jwt_secret=jwt_secret,
        jwks_file=jwks_file,
        jwt_audience=jwt_audience,
        jwt_issuer=jwt_issuer,
    )
    return Settings(var_dir=str(folder), api=api)


FOR_US = settings_with(jwt_audience="couponflow")
FROM_A = settings_with(jwt_issuer="https://a/")


def claims(**changes: object) -> dict[str, object]:
    now = int(CLOCK.now())
    given = {"sub": "billing", "role": "service", "iat": now, "exp": now + 60, **changes}
    return {name: value for name, value in given.items() if value is not None}


def signed(**changes: object) -> str:
    return jwt.encode(claims(**changes), SECRET, algorithm="HS256")


async def verified(token: str, settings: Settings | None = None) -> Identity:
    return await open_tokens(settings or settings_with(), CLOCK).verify(token)


async def refused(token: str, settings: Settings | None = None) -> str:
    with pytest.raises(TokenRefused) as caught:
        await verified(token, settings)
    return str(caught.value)


async def test_a_minted_token_is_believed() -> None:
    settings = settings_with(jwt_audience="couponflow", jwt_issuer="https://login.example/")
    token = mint(settings, CLOCK, role="admin", subject="mira", hours=1)
    assert await verified(token, settings) == Identity("mira", frozenset({"admin"}))


async def test_a_token_ends_when_its_hours_are_over() -> None:
    long_ago = ManualClock(CLOCK.now() - 3_700)
    token = mint(settings_with(), long_ago, role="service", subject="x", hours=1)
    assert await refused(token) == "the token has expired"


@pytest.mark.parametrize("seconds", [-20, 60])
async def test_clocks_may_differ_by_half_a_minute(seconds: int) -> None:
    now = int(CLOCK.now())
    assert (await verified(signed(exp=now + seconds))).subject == "billing"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1}, "the token has expired"),
        ({"exp": None}, "the token has no exp"),
        ({"sub": None}, "the token has no sub"),
        ({"sub": ""}, "the token's sub is empty, too long or not printable"),
        ({"sub": "a\0b"}, "the token's sub is empty, too long or not printable"),
        ({"sub": "a" * 201}, "the token's sub is empty, too long or not printable"),
        ({"sub": 7}, "the token cannot be read"),
        ({"exp": "soon"}, "the token cannot be read"),
        ({"exp": [1]}, "the token cannot be read"),
        ({"exp": {}}, "the token cannot be read"),
        ({"nbf": 9_999_999_999}, "the token is not valid yet"),
        ({"iat": 9_999_999_999}, "the token is not valid yet"),
    ],
)
async def test_what_a_token_lacks_is_said(changes: dict[str, object], reason: str) -> None:
    assert await refused(signed(**changes)) == reason


@pytest.mark.parametrize(
    ("changes", "roles"),
    [
        ({"role": "merchant"}, {"merchant"}),
        ({"role": None, "roles": ["service", "admin"]}, {"service", "admin"}),
        ({"role": "shopper", "roles": ["admin"]}, {"shopper", "admin"}),
        ({"role": "root"}, set()),
        ({"role": ["admin"]}, set()),
        ({"role": None, "roles": "admin"}, set()),
        ({"role": None, "roles": [["admin"], 1, None]}, set()),
        ({"role": None}, set()),
    ],
)
async def test_only_known_roles_count(changes: dict[str, object], roles: set[str]) -> None:
    assert (await verified(signed(**changes))).roles == roles


def encoded(content: object) -> str:
    return jwt.utils.base64url_encode(json.dumps(content).encode()).decode()


def unsigned(header: object) -> str:
    return f"{encoded(header)}.{encoded(claims())}."


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: jwt.encode(claims(), SECRET[::-1], algorithm="HS256"), "not signed with a key"),
        (lambda: unsigned({"alg": "none", "typ": "JWT"}), "not signed with a key"),
        (lambda: unsigned({"alg": "None"}), "not signed with a key"),
        (lambda: unsigned({"alg": "HS512"}), "not signed with a key"),
        (lambda: unsigned({"alg": 1}), "cannot be read"),
        (lambda: unsigned([]), "cannot be read"),
        (lambda: jwt.encode(claims(), SECRET * 2, algorithm="HS512"), "not signed with a key"),
        (lambda: jwt.encode(claims(), RSA_KEY, algorithm="RS256"), "not signed with a key"),
        (lambda: signed()[:-2], "cannot be read"),
        (lambda: "", "cannot be read"),
        (lambda: "a.b.c", "cannot be read"),
        (lambda: "ü.ü.ü", "cannot be read"),
        (lambda: "x" * (MAX_TOKEN_BYTES + 1), "cannot be read"),
    ],
)
async def test_nothing_else_is_believed(make: Callable[[], str], reason: str) -> None:
    told = await refused(make())
    assert reason in told or (reason == "cannot be read" and "not signed" in told)
    assert SECRET not in told


@pytest.mark.parametrize(
    ("settings", "changes", "reason"),
    [
        (FOR_US, {}, "the token has no aud"),
        (FOR_US, {"aud": "shop"}, "the token is for somebody else (aud)"),
        (FROM_A, {}, "the token has no iss"),
        (FROM_A, {"iss": "b"}, "the token is from somebody else (iss)"),
    ],
)
async def test_audience_and_issuer_are_looked_at_when_set(
    settings: Settings, changes: dict[str, str], reason: str
) -> None:
    assert await refused(signed(**changes), settings) == reason


async def test_an_audience_is_no_obstacle_when_none_is_set() -> None:
    assert (await verified(signed(aud="anybody", iss="whoever"))).subject == "billing"


# The secret of the var folder


async def test_commands_and_daemon_share_a_secret_made_once(tmp_path: Path) -> None:
    settings = settings_with(tmp_path / "var", jwt_secret="")
    token = mint(settings, CLOCK, role="service", subject="x", hours=1)
    assert (await verified(token, settings)).roles == {"service"}
    file = tmp_path / "var" / SECRET_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text()) == 64
    assert os.listdir(file.parent) == [SECRET_FILE]
    assert file.read_text() not in token


async def test_whoever_comes_at_once_gets_one_secret(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, jwt_secret="")
    tokens: list[str] = []

    def mint_one() -> None:
        tokens.append(mint(settings, CLOCK, role="service", subject="x", hours=1))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(to_thread.run_sync, mint_one)
    assert [(await verified(token, settings)).subject for token in tokens] == ["x"] * 20
    assert os.listdir(tmp_path) == [SECRET_FILE]


async def test_a_secret_file_cut_short_is_not_used(tmp_path: Path) -> None:
    (tmp_path / SECRET_FILE).write_text("short\n")
    with pytest.raises(TokenKeyBroken, match="less than 32 bytes"):
        open_tokens(settings_with(tmp_path, jwt_secret=""), CLOCK)
    assert (tmp_path / SECRET_FILE).read_text() == "short\n"


# Keys of an issuer


def public_key(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, key_id: str) -> object:
    if isinstance(key, rsa.RSAPrivateKey):
        return {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": key_id}
    return {**jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": key_id}


def write_keys(file: Path, *keys: object) -> None:
    file.write_text(json.dumps({"keys": list(keys)}))


@pytest.fixture
def jwks_file(tmp_path: Path) -> Path:
    file = tmp_path / "jwks.json"
    write_keys(file, public_key(RSA_KEY, "r1"), public_key(EC_KEY, "e1"))
    return file


def with_jwks(file: Path) -> Settings:
    return settings_with(file.parent, jwt_secret="", jwks_file=str(file))


@pytest.mark.parametrize(
    ("key", "key_id", "algorithm"), [(RSA_KEY, "r1", "RS256"), (EC_KEY, "e1", "ES256")]
)
async def test_a_token_of_the_issuer_is_believed(
    jwks_file: Path,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    key_id: str,
    algorithm: str,
) -> None:
    token = jwt.encode(claims(), key, algorithm=algorithm, headers={"kid": key_id})
    assert (await verified(token, with_jwks(jwks_file))).subject == "billing"


async def test_the_key_says_the_algorithm_and_not_the_token(jwks_file: Path) -> None:
    public = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    confused = f"{encoded({'alg': 'HS256', 'kid': 'r1'})}.{encoded(claims())}"
    signature = hmac.digest(public, confused.encode(), "sha256")
    tokens = [
        f"{confused}.{jwt.utils.base64url_encode(signature).decode()}",
        jwt.encode(claims(), RSA_KEY, algorithm="RS512", headers={"kid": "r1"}),
        jwt.encode(claims(), EC_KEY, algorithm="ES256", headers={"kid": "r1"}),
        jwt.encode(claims(), RSA_KEY, algorithm="RS256", headers={"kid": "e1"}),
        unsigned({"alg": "none", "kid": "r1"}),
    ]
    for token in tokens:
        told = await refused(token, with_jwks(jwks_file))
        assert told == "the token is not signed with a key that is known here"


async def test_a_key_must_be_known_by_its_name(jwks_file: Path) -> None:
    nameless = jwt.encode(claims(), RSA_KEY, algorithm="RS256")
    strange = jwt.encode(claims(), RSA_KEY, algorithm="RS256", headers={"kid": "r2"})
    for token in (nameless, strange):
        told = await refused(token, with_jwks(jwks_file))
        assert told == "the token names no key that is known here"
    write_keys(jwks_file, public_key(RSA_KEY, "r1"))
    assert (await verified(nameless, with_jwks(jwks_file))).subject == "billing"


async def test_the_file_is_read_again_when_it_has_changed(jwks_file: Path) -> None:
    clock = ManualClock()
    tokens = open_tokens(with_jwks(jwks_file), clock)
    old = jwt.encode(claims(), RSA_KEY, algorithm="RS256", headers={"kid": "r1"})
    new = jwt.encode(claims(), EC_KEY, algorithm="ES256", headers={"kid": "e2"})
    write_keys(jwks_file, public_key(EC_KEY, "e2"))
    assert (await tokens.verify(old)).subject == "billing"
    clock.advance(JWKS_RECHECK_SECONDS)
    assert (await tokens.verify(new)).subject == "billing"
    with pytest.raises(TokenRefused, match="no key"):
        await tokens.verify(old)


def spoil(file: Path, content: str | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_text(content)


@pytest.mark.parametrize("content", [None, "", "[]", '{"keys": []}', '{"keys": 1}', "{"])
async def test_a_file_that_breaks_later_changes_nothing(
    jwks_file: Path, content: str | None
) -> None:
    clock = ManualClock()
    tokens = open_tokens(with_jwks(jwks_file), clock)
    token = jwt.encode(claims(), RSA_KEY, algorithm="RS256", headers={"kid": "r1"})
    spoil(jwks_file, content)
    clock.advance(JWKS_RECHECK_SECONDS)
    assert (await tokens.verify(token)).subject == "billing"
    with pytest.raises(TokenKeyBroken, match=r"jwks\.json"):
        open_tokens(with_jwks(jwks_file), clock)


async def test_keys_that_must_not_sign_tokens_are_left_out(jwks_file: Path) -> None:
    shared = {"kty": "oct", "k": jwt.utils.base64url_encode(b"s" * 32).decode(), "kid": "s1"}
    write_keys(jwks_file, shared)
    with pytest.raises(TokenKeyBroken, match="no key for RS256 or ES256"):
        open_tokens(with_jwks(jwks_file), CLOCK)


PART = st.binary(max_size=40).map(lambda raw: jwt.utils.base64url_encode(raw).decode()) | st.just(
    encoded({"alg": "RS256", "kid": "r1"})
)
ODD_TOKEN = st.text() | st.lists(PART, max_size=4).map(".".join)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ODD_TOKEN)
async def test_whatever_else_is_sent_is_refused(jwks_file: Path, odd: str) -> None:
    assert await refused(odd)
    assert await refused(odd, with_jwks(jwks_file))


def test_nothing_can_be_minted_for_another_issuer(jwks_file: Path) -> None:
    with pytest.raises(TokensNotMintable, match="ask that issuer"):
        mint(with_jwks(jwks_file), CLOCK, role="admin", subject="x", hours=1)
    assert os.listdir(jwks_file.parent) == ["jwks.json"]
