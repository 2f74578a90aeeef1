"""Bearer tokens: JSON Web Tokens that say who calls the API, and as what."""

import contextlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import jwt
import msgspec
import structlog
from anyio import to_thread

from couponflow.config import ApiSettings, Settings
from couponflow.kernel.clock import Clock

Role = Literal["shopper", "merchant", "service", "admin"]
ROLES: frozenset[str] = frozenset(get_args(Role))

LEEWAY_SECONDS = 30.0
"""How far apart the clocks of whoever makes tokens and of this machine may be."""
MAX_TOKEN_BYTES = 8_192
JWKS_RECHECK_SECONDS = 3.0
SECRET_FILE = "jwt_secret"  # noqa: S105 - its name, not the secret
_SECRET_BYTES_MIN = 32
_SUBJECT_MAX = 200
_JWKS_ALGORITHMS = ("RS256", "ES256")
_log = structlog.get_logger("couponflow.tokens")


class TokenRefused(Exception):
    """A token is not believed; the text says why and may be shown to whoever sent it."""


class TokensNotMintable(Exception):
    """Tokens are signed by somebody else's private key, which couponflow does not have.

    Get one from the issuer whose public keys are in `[api] jwks_file`.
    """


class TokenKeyBroken(Exception):
    """The secret or the JWKS file that tokens are checked with cannot be read or used.

    The text names the file; mend or replace it.
    """


class Identity(msgspec.Struct, frozen=True):
    """Who a token speaks for."""

    subject: str
    roles: frozenset[str]


class TokenVerifier(Protocol):
    """Tells whom to believe."""

    async def verify(self, token: str) -> Identity:
        """The identity in a token; raises `TokenRefused`."""
        ...


def open_tokens(settings: Settings, clock: Clock) -> TokenVerifier:
    """The verifier that the settings ask for; raises `TokenKeyBroken`.

    With neither `[api] jwt_secret` nor `jwks_file` the secret is in the var folder, and made there
    by whoever needs it first.
    """
    if settings.api.jwks_file:
        return JwksTokens(settings.api, Path(settings.api.jwks_file), clock)
    return SecretTokens(settings.api, _secret_of(settings))


def mint(settings: Settings, clock: Clock, *, role: Role, subject: str, hours: float) -> str:
    """Make a token that this installation believes; raises `TokensNotMintable`, `TokenKeyBroken`.

    It cannot be taken back: give it no more hours than it needs.
    """
    if settings.api.jwks_file:
        raise TokensNotMintable(
            "[api] jwks_file is set: tokens are made with the private key of whoever wrote it, "
            "which couponflow does not have; ask that issuer for one"
        )
    now = clock.now()
    claims: dict[str, object] = {
        "sub": subject,
        "role": role,
        "iat": int(now),
        "exp": int(now + hours * 3600),
        "jti": secrets.token_hex(8),
    }
    if settings.api.jwt_audience:
        claims["aud"] = settings.api.jwt_audience
    if settings.api.jwt_issuer:
        claims["iss"] = settings.api.jwt_issuer
    return jwt.encode(claims, _secret_of(settings), algorithm="HS256")


class SecretTokens:
    """Tokens signed with a secret that both sides know (HS256)."""

    def __init__(self, settings: ApiSettings, secret: bytes) -> None:
        self._settings = settings
        self._secret = secret

    async def verify(self, token: str) -> Identity:
        return _believe(token, self._secret, "HS256", self._settings)


@dataclass(frozen=True, slots=True)
class _Keys:
    """What a JWKS file held, and how the file looked then."""

    version: tuple[int, int, int]
    by_id: dict[str | None, jwt.PyJWK]


class JwksTokens:
    """Tokens signed with a private key whose public half is in a file (RS256, ES256).

    The file is read again when it has changed, looked at every few seconds. One that cannot be
    used then is reported, and the keys known before stay in force.
    """

    def __init__(self, settings: ApiSettings, file: Path, clock: Clock) -> None:
        self._settings = settings
        self._file = file
        self._clock = clock
        self._keys = _read_keys(file)
        self._checked_at = clock.monotonic()

    async def verify(self, token: str) -> Identity:
        now = self._clock.monotonic()
        if now - self._checked_at >= JWKS_RECHECK_SECONDS:
            self._checked_at = now
            await to_thread.run_sync(self._refresh)
        key = self._key_of(token)
        return _believe(token, key, key.algorithm_name, self._settings)

    def _key_of(self, token: str) -> jwt.PyJWK:
        """The key a token names. Which algorithm it is for, the key says and never the token."""
        _require_plausible(token)
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise TokenRefused("the token cannot be read") from error
        keys = self._keys.by_id
        if key_id is None and len(keys) == 1:
            return next(iter(keys.values()))
        if not isinstance(key_id, str) or key_id not in keys:
            raise TokenRefused("the token names no key that is known here")
        return keys[key_id]

    def _refresh(self) -> None:
        try:
            if _version_of(self._file) != self._keys.version:
                self._keys = _read_keys(self._file)
                _log.info("jwks_read_again", keys=len(self._keys.by_id))
        except (OSError, TokenKeyBroken) as error:
            _log.error("jwks_unusable", error=str(error))


def _read_keys(file: Path) -> _Keys:
    try:
        version = _version_of(file)
        found = jwt.PyJWKSet.from_json(file.read_text("utf-8")).keys
    except (OSError, ValueError, TypeError, AttributeError, jwt.PyJWTError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not a set of JSON Web Keys"
        raise TokenKeyBroken(f"[api] jwks_file {file} cannot be used: {cause}") from error
    usable = {
        key.key_id: key
        for key in found
        if key.algorithm_name in _JWKS_ALGORITHMS and key.public_key_use in (None, "sig")
    }
    if not usable:
        raise TokenKeyBroken(f"[api] jwks_file {file} holds no key for RS256 or ES256")
    return _Keys(version, usable)


def _version_of(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _require_plausible(token: str) -> None:
    if not token or len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise TokenRefused("the token cannot be read")


def _believe(token: str, key: bytes | jwt.PyJWK, algorithm: str, settings: ApiSettings) -> Identity:
    _require_plausible(token)
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=settings.jwt_audience or None,
            issuer=settings.jwt_issuer or None,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "sub"], "verify_aud": bool(settings.jwt_audience)},
        )
    except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise TokenRefused(_reason(error)) from error
    subject = claims["sub"]
    if not is_subject(subject):
        raise TokenRefused("the token's sub is empty, too long or not printable")
    return Identity(subject, _roles_in(claims.get("role"), claims.get("roles")))


def is_subject(text: str) -> bool:
    """Whether a token may name this; it goes into logs and tables."""
    return 0 < len(text) <= _SUBJECT_MAX and text.isprintable()


def _roles_in(role: object, roles: object) -> frozenset[str]:
    """Roles that are not known here open nothing."""
    named = [role, *roles] if isinstance(roles, list) else [role]
    return frozenset(name for name in named if isinstance(name, str) and name in ROLES)


def _reason(error: Exception) -> str:
    match error:
        case jwt.ExpiredSignatureError():
            return "the token has expired"
        case jwt.ImmatureSignatureError():
            return "the token is not valid yet"
        case jwt.InvalidAudienceError():
            return "the token is for somebody else (aud)"
        case jwt.InvalidIssuerError():
            return "the token is from somebody else (iss)"
        case jwt.MissingRequiredClaimError():
            return f"the token has no {error.claim}"
        case jwt.InvalidSignatureError() | jwt.InvalidAlgorithmError():
            return "the token is not signed with a key that is known here"
        case _:
            return "the token cannot be read"


def _secret_of(settings: Settings) -> bytes:
    if settings.api.jwt_secret:
        return settings.api.jwt_secret.encode()
    return _secret_in(settings.var_path)


def _secret_in(var_path: Path) -> bytes:
    """The secret of this var folder, made by whoever comes first; several may come at once."""
    file = var_path / SECRET_FILE
    with contextlib.suppress(FileExistsError):
        if not file.exists():
            _make_secret(file)
    secret = file.read_bytes().strip()
    if len(secret) < _SECRET_BYTES_MIN:
        raise TokenKeyBroken(
            f"{file} holds less than {_SECRET_BYTES_MIN} bytes: delete it, and another is made, or "
            "set [api] jwt_secret"
        )
    return secret


def _make_secret(file: Path) -> None:
    """Write it beside its place and link it there, which fails if another was faster."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as opened:
            opened.write(secrets.token_hex(_SECRET_BYTES_MIN))
        os.link(draft, file)
    finally:
        draft.unlink()
