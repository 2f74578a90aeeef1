from pathlib import Path

import pytest

from couponflow.config import (
    ADDRESS_SECRETS,
    SOURCE_SECRETS,
    VARIABLES,
    ApiSettings,
    DatabaseSettings,
    HttpSettings,
    RedirectSettings,
    RedisSettings,
    Settings,
)
from couponflow.config_loading import (
    ConfigurationInvalid,
    ConfigurationProblem,
    load_settings,
    load_with_sources,
)
from couponflow.config_rules import parse_bind, settings_warnings

DATABASE_EXAMPLE = "postgresql://couponflow:password@127.0.0.1:5432/couponflow"
SECRET = "0123456789abcdef0123456789abcdef"


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
            "127.0.0.1:3003",
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
        (
            {"API_BIND": "127.0.0.1:3001"},
            "[redirect] bind",
            "uses port 3001, which [api] bind uses already",
            "127.0.0.1:3003",
        ),
        (
            {"CONSUMERS_MIN": "6"},
            "[consumers] min",
            "is 6, more than [consumers] max = 5",
            "5",
        ),
        (
            {"CONSUMERS_SHRINK_BELOW": "1000"},
            "[consumers] shrink_below",
            "is 1000, not less than [consumers] grow_above = 1000, so consumers would come and go",
            "100",
        ),
        (
            {"REDIS_CLUSTER": "true"},
            "[redis] url",
            "is not set, and [redis] cluster = true says that there is a cluster",
            "redis://127.0.0.1:6379/0",
        ),
        (
            {"REDIS_CLUSTER": "true", "REDIS_URL": "unix:///run/redis.sock"},
            "[redis] url",
            "names a socket of this machine, and the nodes of a cluster ([redis] cluster = true) "
            "are reached by host and port",
            "redis://127.0.0.1:7000",
        ),
        (
            {"API_JWT_SECRET": SECRET[:31]},
            "[api] jwt_secret",
            "must be 32 bytes or longer",
            "the output of `openssl rand -hex 32`",
        ),
        (
            {"API_JWT_SECRET": SECRET, "API_JWKS_FILE": "keys.json"},
            "[api] jwks_file",
            "is set beside [api] jwt_secret; tokens are signed one way or the other",
            "/etc/couponflow/jwks.json",
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
        {"CONSUMERS_MIN": "5"},
        {"CONSUMERS_SHRINK_BELOW": "0", "CONSUMERS_GROW_ABOVE": "1"},
        {"REDIS_CLUSTER": "true", "REDIS_URL": "redis://h:7000"},
        {"API_JWT_SECRET": SECRET},
        {"API_JWT_SECRET": "é" * 16},
        {"API_JWKS_FILE": "keys.json"},
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


def test_production_needs_a_database_a_token_and_a_secret() -> None:
    database, token, secret = problems({"COUPONFLOW_ENV": "production"})

    assert database.key == "[database] url (DATABASE_URL)"
    assert "set DATABASE_URL, or DATABASE_URL_FILE" in database.problem
    assert token.key == "[redirect] stats_token (COUPONFLOW_REDIRECT_STATS_TOKEN)"
    assert "set COUPONFLOW_REDIRECT_STATS_TOKEN, or" in token.problem
    assert secret.key == "[api] jwt_secret (COUPONFLOW_API_JWT_SECRET)"
    assert "set COUPONFLOW_API_JWT_SECRET, or" in secret.problem


@pytest.mark.parametrize(
    ("variable", "value", "api"),
    [
        ("COUPONFLOW_API_JWT_SECRET", SECRET, ApiSettings(jwt_secret=SECRET)),
        ("COUPONFLOW_API_JWKS_FILE", "keys.json", ApiSettings(jwks_file="keys.json")),
    ],
)
def test_production_starts_with_a_database_a_token_and_a_way_to_check_tokens(
    variable: str, value: str, api: ApiSettings
) -> None:
    environment = {
        "COUPONFLOW_ENV": "production",
        "DATABASE_URL": "postgres://h/d",
        "COUPONFLOW_REDIRECT_STATS_TOKEN": "t",
        variable: value,
    }

    assert load_settings(None, environment) == Settings(
        env="production",
        database=DatabaseSettings(url="postgres://h/d"),
        redirect=RedirectSettings(stats_token="t"),
        api=api,
    )


PRODUCTION = {
    "COUPONFLOW_ENV": "production",
    "DATABASE_URL": "postgres://h/d",
    "COUPONFLOW_REDIRECT_STATS_TOKEN": "t",
    "COUPONFLOW_API_JWT_SECRET": SECRET,
}


@pytest.mark.parametrize("path", ADDRESS_SECRETS)
def test_a_secret_that_is_all_the_proof_there_is_must_be_long_in_production(path: str) -> None:
    variable = SOURCE_SECRETS[path]
    section, _, name = path.partition(".")

    problem = only_problem({**PRODUCTION, variable: f"{SECRET},{SECRET[:15]}"})

    assert problem.key == f"[{section}] {name} ({variable})"
    assert "fewer than 16 characters" in problem.problem
    assert problem.example == "the output of `openssl rand -hex 32`"
    assert load_settings(None, {**PRODUCTION, variable: f"{SECRET[:16]},,"}).env == "production"


@pytest.mark.parametrize("path", ADDRESS_SECRETS)
def test_elsewhere_a_short_one_gives_a_warning(path: str) -> None:
    variable = SOURCE_SECRETS[path]
    section, _, name = path.partition(".")

    (warning,) = settings_warnings(load_settings(None, {variable: "hunter2"}))

    assert warning.startswith(f"[{section}] {name} ({variable}) has a secret of fewer than 16 char")
    assert "hunter2" not in warning
    assert settings_warnings(load_settings(None, {variable: SECRET[:16]})) == []


def test_how_long_a_secret_is_that_a_sender_signs_with_is_not_for_us_to_say() -> None:
    signing = {SOURCE_SECRETS[path]: "x" for path in SOURCE_SECRETS if path not in ADDRESS_SECRETS}

    assert settings_warnings(load_settings(None, {**PRODUCTION, **signing})) == []


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


def test_a_redis_url_gives_no_warning() -> None:
    assert settings_warnings(Settings(redis=RedisSettings(url="redis://h"))) == []


def test_trusting_every_address_gives_a_warning() -> None:
    http = HttpSettings(trusted_proxies=("0.0.0.0/0", "10.0.0.0/8", "::/0"))

    first, second = settings_warnings(Settings(http=http))

    assert first.startswith("[http] trusted_proxies holds 0.0.0.0/0, which is every address")
    assert second.startswith("[http] trusted_proxies holds ::/0, which is every address")
