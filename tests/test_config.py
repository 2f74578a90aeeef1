import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from couponflow.config import (
    KEYS,
    SECRETS,
    VARIABLES,
    DatabaseSettings,
    HttpSettings,
    RedirectSettings,
    RedisSettings,
    Settings,
    parse_bind,
    settings_warnings,
)
from couponflow.config_loading import (
    ConfigurationInvalid,
    ConfigurationProblem,
    load_settings,
    load_with_sources,
)

ROOT = Path(__file__).parents[1]
DOCUMENTED = ROOT / "config" / "couponflow.toml"
DATABASE_EXAMPLE = "postgresql://couponflow:password@127.0.0.1:5432/couponflow"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a `couponflow.toml` that happens to lie in the current folder."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)


def problems(environment: dict[str, str]) -> list[ConfigurationProblem]:
    with pytest.raises(ConfigurationInvalid) as raised:
        load_settings(None, environment)
    return raised.value.problems


def only_problem(environment: dict[str, str]) -> ConfigurationProblem:
    found = problems(environment)
    assert len(found) == 1, found
    return found[0]


# Rules between values


@pytest.mark.parametrize(
    ("environment", "key", "problem", "example"),
    [
        (
            {"DATABASE_POOL_MIN": "9"},
            "[database] pool_min",
            "is 9, more than [database] pool_max = 8",
            "8",
        ),
        (
            {"JOURNAL_SEGMENT_BYTES": "70000", "JOURNAL_MAX_BYTES": "139999"},
            "[journal] max_bytes",
            "is 139999, less than two segments of [journal] segment_bytes = 70000",
            "140000",
        ),
        (
            {"CHANNELS_CAPACITY": "2000", "CHANNELS_DEPTH_ALARM": "1"},
            "[channels] capacity",
            "is 2000, so no click can wait beside a full batch of [clicks] flush_rows = 2000",
            "8000",
        ),
        (
            {"CHANNELS_DEPTH_ALARM": "18001"},
            "[channels] depth_alarm",
            "is 18001, and no more than 18000 ever wait ([channels] capacity = 20000 less [clicks] "
            "flush_rows = 2000), so it can never ring",
            "15000",
        ),
        (
            {"OPS_BIND": "[::1]:3001"},
            "[ops] bind",
            "uses port 3001, which [redirect] bind uses already",
            "127.0.0.1:3002",
        ),
        (
            {"HTTP_TRUSTED_PROXIES": "10.0.0.1/8"},
            "[http] trusted_proxies",
            "must hold addresses and networks only (10.0.0.1/8 has host bits set)",
            "10.0.0.0/8",
        ),
        (
            {"REDIS_URL": "http://u:hunter2@h"},
            "[redis] url",
            "must begin with redis://, rediss:// or unix://",
            "redis://127.0.0.1:6379/0",
        ),
        (
            {"DATABASE_URL": "mysql://u:hunter2@h"},
            "[database] url",
            "must begin with postgresql:// or postgres://",
            DATABASE_EXAMPLE,
        ),
    ],
)
def test_a_broken_rule_names_the_key_and_a_way_out(
    environment: dict[str, str], key: str, problem: str, example: str
) -> None:
    found = only_problem({f"COUPONFLOW_{name}": value for name, value in environment.items()})

    assert found.key.startswith(f"{key} (")
    assert (found.problem, found.example) == (problem, example)


@pytest.mark.parametrize(
    "environment",
    [
        {"DATABASE_POOL_MIN": "8"},
        {"JOURNAL_SEGMENT_BYTES": "70000", "JOURNAL_MAX_BYTES": "140000"},
        {"CHANNELS_CAPACITY": "5000", "CHANNELS_DEPTH_ALARM": "3000"},
        {"OPS_BIND": "127.0.0.1:0", "REDIRECT_BIND": "127.0.0.1:0", "SANDBOX_BIND": "[::1]:0"},
        {"HTTP_TRUSTED_PROXIES": "10.0.0.1,fd00::/8"},
        {"REDIS_URL": "rediss://h"},
        {"REDIS_URL": "unix:///run/redis.sock"},
        {"DATABASE_URL": "postgresql://couponflow@/d?host=/run/postgresql"},
    ],
)
def test_values_at_the_edge_of_a_rule_keep_it(environment: dict[str, str]) -> None:
    variables = {f"COUPONFLOW_{name}": value for name, value in environment.items()}

    assert set(load_with_sources(None, variables).sources) == {
        VARIABLES[variable].path for variable in variables
    }


def test_every_entry_of_a_list_is_checked() -> None:
    found = problems({"COUPONFLOW_HTTP_TRUSTED_PROXIES": "proxy,10.0.0.0/8,10.0.0.0/33"})

    assert len(found) == 2


def test_production_needs_a_database_and_a_token() -> None:
    database, token = problems({"COUPONFLOW_ENV": "production"})

    assert database.key == "[database] url (DATABASE_URL)"
    assert "set DATABASE_URL, or DATABASE_URL_FILE" in database.problem
    assert token.key == "[redirect] stats_token (COUPONFLOW_REDIRECT_STATS_TOKEN)"
    assert "set COUPONFLOW_REDIRECT_STATS_TOKEN, or" in token.problem


def test_production_starts_with_a_database_and_a_token() -> None:
    environment = {
        "COUPONFLOW_ENV": "production",
        "DATABASE_URL": "postgres://h/d",
        "COUPONFLOW_REDIRECT_STATS_TOKEN": "t",
    }

    assert load_settings(None, environment) == Settings(
        env="production",
        database=DatabaseSettings(url="postgres://h/d"),
        redirect=RedirectSettings(stats_token="t"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0.0.0:3001", ("0.0.0.0", 3001)),
        ("localhost:0", ("localhost", 0)),
        ("[::]:65535", ("::", 65535)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        ("my_service:80", ("my_service", 80)),
    ],
)
def test_a_bind_is_an_address_or_name_and_a_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_bind(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be host:port, not ''"),
        ("3001", "must be host:port, not '3001'"),
        (":3001", "must be host:port, not ':3001'"),
        ("h:", "must end in a port from 0 to 65535, not in ''"),
        ("h:65536", "must end in a port from 0 to 65535, not in '65536'"),
        ("h:-1", "must end in a port from 0 to 65535, not in '-1'"),
        ("h:٣", "must end in a port from 0 to 65535, not in '٣'"),
        ("::1:80", "must have its IPv6 address in brackets, as in [::1]:80"),
        ("[x]:80", "must have an IPv6 address between its brackets, not 'x'"),
        ("[::1:80", "must have its IPv6 address in brackets, as in [::1]:80"),
        ("http//h:80", "must begin with an address or a host name, not with 'http//h'"),
    ],
)
def test_anything_else_is_not_a_bind(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"^must") as raised:
        parse_bind(text)

    assert str(raised.value) == problem


# Warnings


def test_the_defaults_give_no_warning() -> None:
    assert settings_warnings(Settings()) == []


def test_a_redis_url_without_effect_gives_a_warning() -> None:
    (warning,) = settings_warnings(Settings(redis=RedisSettings(url="redis://h")))

    assert warning.startswith("REDIS_URL is set, but")


def test_trusting_every_address_gives_a_warning() -> None:
    http = HttpSettings(trusted_proxies=("0.0.0.0/0", "10.0.0.0/8", "::/0"))

    first, second = settings_warnings(Settings(http=http))

    assert first.startswith("[http] trusted_proxies holds 0.0.0.0/0, which is every address")
    assert second.startswith("[http] trusted_proxies holds ::/0, which is every address")


# What is documented


def test_the_documented_file_changes_nothing() -> None:
    assert load_settings(DOCUMENTED, {}) == Settings()


def test_the_documented_file_holds_every_key_at_its_default(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=\w)", "", DOCUMENTED.read_text(), flags=re.MULTILINE)
    (tmp_path / "every_key.toml").write_text(text)

    loaded = load_with_sources(tmp_path / "every_key.toml", {})

    assert loaded.settings == Settings()
    assert loaded.sources == dict.fromkeys(KEYS, "file")
    assert tomllib.loads(text) == msgspec.to_builtins(Settings()) | {
        "http": {"trusted_proxies": []}
    }


def test_the_example_environment_is_valid(tmp_path: Path) -> None:
    lines = (ROOT / "config" / "couponflow.env.example").read_text().splitlines()
    (tmp_path / "token").write_text("hunter2")
    environment = dict(line.split("=", 1) for line in lines if re.match(r"#?[A-Z_]+=", line))
    environment = {name.removeprefix("#"): value for name, value in environment.items()}
    del environment["COUPONFLOW_CONFIG"], environment["DATABASE_URL_FILE"]
    environment["COUPONFLOW_REDIRECT_STATS_TOKEN_FILE"] = str(tmp_path / "token")

    assert load_settings(None, environment).env == "production"


def test_no_two_keys_share_a_variable_and_every_secret_is_a_key() -> None:
    assert len(VARIABLES) == len(KEYS) + 2
    assert not [variable for variable in VARIABLES if variable.endswith("_FILE")]
    assert set(KEYS) >= SECRETS
