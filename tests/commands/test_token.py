import json
from pathlib import Path

import pytest

from couponflow.config import ApiSettings, Settings
from couponflow.kernel.clock import SystemClock
from couponflow.kernel.tokens import SECRET_FILE, Identity, open_tokens
from tests.commands.command_line import CommandLine

SECRET = "a secret of the tests, long enough to sign with"
CLOCK = SystemClock()


async def test_a_daemon_in_the_same_folder_believes_the_token(tmp_path: Path) -> None:
    ended = await CommandLine(tmp_path, "").run(
        "token", "--role", "service", "--subject", "billing", "--hours", "0.5"
    )
    assert (ended.code, ended.err) == (0, "")
    tokens = open_tokens(Settings(var_dir=str(tmp_path / "var")), CLOCK)
    assert await tokens.verify(ended.out.strip()) == Identity("billing", frozenset({"service"}))
    assert (tmp_path / "var" / SECRET_FILE).read_text() not in ended.out + ended.err


async def test_a_secret_that_is_set_is_used(tmp_path: Path) -> None:
    ended = await CommandLine(tmp_path, "").run(
        "token", "--role=admin", "--json", COUPONFLOW_API_JWT_SECRET=SECRET
    )
    assert ended.code == 0
    tokens = open_tokens(Settings(api=ApiSettings(jwt_secret=SECRET)), CLOCK)
    assert (await tokens.verify(ended.json()["token"])).roles == {"admin"}
    assert SECRET not in ended.out + ended.err
    assert not (tmp_path / "var").exists()


async def test_with_an_issuers_keys_there_is_nothing_to_sign_with(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": []}))
    ended = await CommandLine(tmp_path, "").run(
        "token", "--role=service", COUPONFLOW_API_JWKS_FILE=str(tmp_path / "jwks.json")
    )
    assert (ended.code, ended.out) == (1, "")
    assert "ask that issuer" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--role=root",),
        ("--role=admin", "--hours=0"),
        ("--role=admin", "--hours=nan"),
        ("--role=admin", "--hours=9000"),
        ("--role=admin", "--subject="),
        ("--role=admin", "--subject=a\nb"),
    ],
)
async def test_a_token_that_makes_no_sense_is_wrong_usage(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ended = await CommandLine(tmp_path, "").run("token", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Traceback" not in ended.err
