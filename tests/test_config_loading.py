from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from couponflow.config import (
    KEYS,
    VARIABLES,
    DatabaseSettings,
    HttpSettings,
    RedisSettings,
    Settings,
)
from couponflow.config_loading import (
    ConfigurationInvalid,
    ConfigurationProblem,
    describe_settings,
    load_settings,
    load_with_sources,
    mask_url,
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a `couponflow.toml` that happens to lie in the current folder."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)


def toml(folder: Path, text: str) -> Path:
    file = folder / "settings.toml"
    file.write_text(text)
    return file


def problems(
    environment: dict[str, str], config_file: Path | None = None
) -> list[ConfigurationProblem]:
    with pytest.raises(ConfigurationInvalid) as raised:
        load_settings(config_file, environment)
    return raised.value.problems


def only_problem(
    environment: dict[str, str], config_file: Path | None = None
) -> ConfigurationProblem:
    found = problems(environment, config_file)
    assert len(found) == 1, found
    return found[0]


# Sources


def test_nothing_configured_gives_the_defaults() -> None:
    assert load_settings(None, {"PATH": "/bin", "HOME": "/nowhere"}) == Settings()


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "[database]\npool_min = 2\npool_max = 20\n")

    settings = load_settings(file, {"COUPONFLOW_DATABASE_POOL_MAX": "30"})

    assert settings.database == DatabaseSettings(pool_min=2, pool_max=30)


def test_the_files_come_in_order_of_explicitness(tmp_path: Path) -> None:
    explicit = toml(tmp_path, 'var_dir = "explicit"')
    named = tmp_path / "named.toml"
    named.write_text('var_dir = "named"')
    environment = {"COUPONFLOW_CONFIG": str(named)}

    assert load_settings(None, {}).var_dir == "./var"
    Path("couponflow.toml").write_text('var_dir = "current"')
    assert load_settings(None, {}).var_dir == "current"
    assert load_settings(None, environment).var_dir == "named"
    assert load_settings(explicit, environment).var_dir == "explicit"


def test_top_level_keys_have_variables_without_a_section() -> None:
    settings = load_settings(None, {"COUPONFLOW_VAR_DIR": "/data", "COUPONFLOW_ENV": "development"})

    assert settings == Settings(var_dir="/data")


@pytest.mark.parametrize("variable", ["DATABASE_URL", "COUPONFLOW_DATABASE_URL"])
def test_both_names_of_the_database_url_are_honoured(variable: str) -> None:
    assert load_settings(None, {variable: "postgres://h/d"}).database.url == "postgres://h/d"


def test_redis_url_is_honoured() -> None:
    assert load_settings(None, {"REDIS_URL": "redis://h"}) == Settings(
        redis=RedisSettings(url="redis://h")
    )


def test_both_names_may_be_set_if_they_agree() -> None:
    environment = {"DATABASE_URL": "postgres://h/d", "COUPONFLOW_DATABASE_URL": "postgres://h/d"}

    assert load_settings(None, environment).database.url == "postgres://h/d"


def test_two_names_that_differ_are_a_problem() -> None:
    environment = {"DATABASE_URL": "postgres://h/d", "COUPONFLOW_DATABASE_URL": "postgres://h/e"}

    assert only_problem(environment) == ConfigurationProblem(
        "[database] url (DATABASE_URL)",
        "DATABASE_URL and COUPONFLOW_DATABASE_URL are both set and differ",
        "DATABASE_URL alone",
    )


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    file = toml(tmp_path, "[clicks]\nflush_rows = 7\n")
    environment = {
        "COUPONFLOW_CLICKS_FLUSH_ROWS": "",
        "DATABASE_URL": "",
        "COUPONFLOW_CONFIG": "",
        "COUPONFLOW_NO_SUCH_KEY": "",
        "COUPONFLOW_VAR_DIR_FILE": "",
    }

    assert load_settings(file, environment).clicks.flush_rows == 7


def test_lists_in_the_environment_are_separated_by_commas() -> None:
    settings = load_settings(None, {"COUPONFLOW_HTTP_TRUSTED_PROXIES": "10.0.0.0/8, ::1,"})

    assert settings.http == HttpSettings(trusted_proxies=("10.0.0.0/8", "::1"))


def test_numbers_are_read_from_text_in_the_environment_only(tmp_path: Path) -> None:
    assert load_settings(None, {"COUPONFLOW_SHUTDOWN_DEADLINE": "5"}).shutdown.deadline == 5.0

    file = toml(tmp_path, '[shutdown]\ndeadline = "5"\n')
    assert only_problem({}, file) == ConfigurationProblem(
        "[shutdown] deadline (COUPONFLOW_SHUTDOWN_DEADLINE)",
        "must be a number above 0, not '5'",
        "25.0",
    )


# Values in files of their own


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("DATABASE_URL", "database"),
        ("COUPONFLOW_DATABASE_URL", "database"),
        ("REDIS_URL", "redis"),
    ],
)
def test_a_url_can_be_read_from_a_file(
    tmp_path: Path, variable: str, key: str, ending: str
) -> None:
    url = "postgresql://h/d" if key == "database" else "redis://h/0"
    (tmp_path / "secret").write_bytes(f"{url}{ending}".encode())

    settings = load_settings(None, {f"{variable}_FILE": str(tmp_path / "secret")})

    assert (settings.database.url, settings.redis.url) == (
        (url, "") if key == "database" else ("", url)
    )


def test_every_key_can_be_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2\n")
    (tmp_path / "rows").write_text("17\n")
    environment = {
        "COUPONFLOW_REDIRECT_STATS_TOKEN_FILE": str(tmp_path / "token"),
        "COUPONFLOW_CLICKS_FLUSH_ROWS_FILE": str(tmp_path / "rows"),
    }

    settings = load_settings(None, environment)

    assert (settings.redirect.stats_token, settings.clicks.flush_rows) == ("hunter2", 17)


def test_a_key_that_is_itself_the_name_of_a_file_is_not_read_from_it() -> None:
    environment = {"COUPONFLOW_API_JWKS_FILE": "nowhere/jwks.json"}

    assert load_settings(None, environment).api.jwks_file == "nowhere/jwks.json"


def test_such_a_key_can_be_read_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("jwks.json\n")
    environment = {"COUPONFLOW_API_JWKS_FILE_FILE": str(tmp_path / "name")}

    assert load_settings(None, environment).api.jwks_file == "jwks.json"


def test_only_one_newline_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" a\n\n")
    environment = {"COUPONFLOW_REDIRECT_STATS_TOKEN_FILE": str(tmp_path / "token")}

    assert load_settings(None, environment).redirect.stats_token == " a\n"


def test_a_value_and_a_file_for_it_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("postgresql://h/d")
    environment = {"DATABASE_URL": "postgresql://h/d", "DATABASE_URL_FILE": f"{tmp_path}/secret"}

    problem = only_problem(environment)

    assert problem.key == "[database] url (DATABASE_URL)"
    assert problem.problem == "DATABASE_URL and DATABASE_URL_FILE are both set"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "which cannot be read: No such file or directory"),
        (b"\xff\xfe", "which cannot be read: it is not UTF-8 text"),
        (b"\n", "which is empty"),
    ],
)
def test_a_file_without_a_value_is_a_problem_that_names_it(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)

    problem = only_problem(
        {"COUPONFLOW_ENV": "production", "DATABASE_URL": "postgres://h"}
        | {"COUPONFLOW_API_JWKS_FILE": "jwks.json"}
        | {"COUPONFLOW_REDIRECT_STATS_TOKEN_FILE": str(file)}
    )

    assert problem.problem == f"COUPONFLOW_REDIRECT_STATS_TOKEN_FILE names {file}, {reason}"


# Files that cannot be used


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    missing = tmp_path / "no.toml"

    for config_file, environment, named_by in (
        (missing, {}, "--config"),
        (None, {"COUPONFLOW_CONFIG": str(missing)}, "COUPONFLOW_CONFIG"),
    ):
        assert only_problem(environment, config_file) == ConfigurationProblem(
            named_by,
            f"{missing} cannot be read: No such file or directory",
            "a file like config/couponflow.toml",
        )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[log]\nlevel = loud\n", "Invalid value (at line 2, column 9)"),
        ("[log\n", "Expected ']' at the end of a table declaration (at line 1, column 5)"),
        ("[log]\na = [1,\n", "Invalid value (at line 3, column 1, the end of the file)"),
    ],
)
def test_a_syntax_error_is_one_problem_with_its_place(
    tmp_path: Path, text: str, place: str
) -> None:
    file = toml(tmp_path, text)

    problem = only_problem({"COUPONFLOW_ENV": "production"}, file)

    assert problem.problem == f"{file} is not valid TOML: {place}"


# Unknown names


@pytest.mark.parametrize(
    ("text", "key", "meant", "example"),
    [
        ("[redirct]\n", "[redirct]", "[redirect]", "[redirect]"),
        ('evn = "x"', "evn", "env", "env = 'development'"),
        (
            "[redirect]\nrate_limit = 1",
            "[redirect] rate_limit",
            "[redirect] rate_limit_per_minute",
            "[redirect] rate_limit_per_minute = 100",
        ),
        (
            "[redirect]\nfsync_seconds = 1",
            "[redirect] fsync_seconds",
            "[journal] fsync_seconds",
            "[journal] fsync_seconds = 1.0",
        ),
        (
            "'redirect.cache_seconds' = 1",
            "redirect.cache_seconds",
            "[redirect] cache_seconds",
            "[redirect] cache_seconds = 300.0",
        ),
    ],
)
def test_an_unknown_name_in_the_file_gets_a_suggestion(
    tmp_path: Path, text: str, key: str, meant: str, example: str
) -> None:
    assert only_problem({}, toml(tmp_path, text)) == ConfigurationProblem(
        key, f"is unknown: did you mean {meant}?", example
    )


@pytest.mark.parametrize(
    ("variable", "meant", "example"),
    [
        ("COUPONFLOW_LOG_LEVL", "COUPONFLOW_LOG_LEVEL", "COUPONFLOW_LOG_LEVEL=info"),
        ("COUPONFLOW_LOG_LEVL_FILE", "COUPONFLOW_LOG_LEVEL", "COUPONFLOW_LOG_LEVEL=info"),
        ("COUPONFLOW_CONFIG_FILE", "COUPONFLOW_CONFIG", "COUPONFLOW_CONFIG=couponflow.toml"),
    ],
)
def test_an_unknown_variable_gets_a_suggestion(variable: str, meant: str, example: str) -> None:
    assert only_problem({variable: "hunter2"}) == ConfigurationProblem(
        variable, f"is unknown: did you mean {meant}?", example
    )


def test_a_name_that_resembles_nothing_is_refused_without_a_suggestion(tmp_path: Path) -> None:
    found = problems({"COUPONFLOW_QQQ": "1"}, toml(tmp_path, "qqq = 1\n[zzz]\nb = 1\n"))

    assert [problem.key for problem in found] == ["qqq", "[zzz]", "COUPONFLOW_QQQ"]
    assert {problem.problem for problem in found} == {
        "is unknown; config/couponflow.toml lists every key"
    }


def test_a_section_given_as_a_value_is_a_problem_that_does_not_show_it(tmp_path: Path) -> None:
    problem = only_problem({}, toml(tmp_path, 'database = "postgresql://u:hunter2@h/d"'))

    assert str(problem) == "database: is a section, not a key (example: [database])"


# Wrong values


@pytest.mark.parametrize(
    ("variable", "value", "problem", "example"),
    [
        ("REDIRECT_RATE_LIMIT_PER_MINUTE", "-1", "a whole number of at least 0", "100"),
        ("REDIRECT_RATE_LIMIT_PER_MINUTE", "many", "a whole number of at least 0", "100"),
        ("CLICKS_FLUSH_ROWS", "100001", "a whole number from 1 to 100000", "2000"),
        ("CLICKS_FLUSH_SECONDS", "0", "a number above 0", "0.5"),
        ("CLICKS_FLUSH_SECONDS", "inf", "a number above 0", "0.5"),
        ("JOURNAL_FSYNC_SECONDS", "nan", "a number of at least 0", "1.0"),
        ("LOG_LEVEL", "loud", "one of debug, error, info, warning", "info"),
        ("ENV", "prod", "one of development, production", "development"),
    ],
)
def test_a_wrong_value_is_described(variable: str, value: str, problem: str, example: str) -> None:
    found = only_problem({f"COUPONFLOW_{variable}": value})

    assert found.key.endswith(f"(COUPONFLOW_{variable})")
    assert found.problem == f"must be {problem}, not '{value}'"
    assert found.example == example


@pytest.mark.parametrize(
    ("text", "problem", "example"),
    [
        ("[http]\ntrusted_proxies = '::1'", "a list of texts, not '::1'", "['10.0.0.0/8']"),
        ("[http]\ntrusted_proxies = [1]", "a list of texts, not [1]", "['10.0.0.0/8']"),
        ("[clicks]\nflush_rows = true", "a whole number from 1 to 100000, not true", "2000"),
        ("[clicks]\nflush_rows = 1.0", "a whole number from 1 to 100000, not 1.0", "2000"),
        ("[env]", "one of development, production, not a section", "'development'"),
        ("var_dir = 2026-01-01", "a text, not 2026-01-01", "'./var'"),
    ],
)
def test_a_wrong_type_in_the_file_is_described_as_the_file_writes_it(
    tmp_path: Path, text: str, problem: str, example: str
) -> None:
    found = only_problem({}, toml(tmp_path, text))

    assert (found.problem, found.example) == (f"must be {problem}", example)


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
@example("\udcff")
def test_any_text_at_all_is_a_value_or_a_problem(text: str) -> None:
    environment = dict.fromkeys(VARIABLES, text)

    with pytest.raises(ConfigurationInvalid) as raised:
        load_settings(None, environment)

    # No text is right for both of these.
    assert {problem.key for problem in raised.value.problems} & {
        "env (COUPONFLOW_ENV)",
        "[log] level (COUPONFLOW_LOG_LEVEL)",
    }


def test_all_problems_of_all_sources_are_listed_at_once(tmp_path: Path) -> None:
    file = toml(tmp_path, "colour = 1\n[database]\npool_min = 9\n[journal]\nmax_bytes = 'big'\n")
    environment = {
        "COUPONFLOW_OPS_BIND": "nowhere",
        "COUPONFLOW_REDIRECT_SERVER": "apache",
        "COUPONFLOW_COLOUR": "1",
    }

    assert [problem.key for problem in problems(environment, file)] == [
        "colour",
        "[journal] max_bytes (COUPONFLOW_JOURNAL_MAX_BYTES)",
        "COUPONFLOW_COLOUR",
        "[redirect] server (COUPONFLOW_REDIRECT_SERVER)",
        "[database] pool_min (COUPONFLOW_DATABASE_POOL_MIN)",
        "[ops] bind (COUPONFLOW_OPS_BIND)",
    ]


def test_the_message_has_a_line_for_each_problem() -> None:
    with pytest.raises(ConfigurationInvalid) as raised:
        load_settings(None, {"COUPONFLOW_CLICKS_FLUSH_ROWS": "0", "COUPONFLOW_LOG_LEVEL": "loud"})

    assert str(raised.value).splitlines() == [
        "2 problems in the configuration:",
        "  - [clicks] flush_rows (COUPONFLOW_CLICKS_FLUSH_ROWS): must be a whole number from 1 to "
        "100000, not '0' (example: 2000)",
        "  - [log] level (COUPONFLOW_LOG_LEVEL): must be one of debug, error, info, warning, not "
        "'loud' (example: info)",
    ]


# Secrets and descriptions


def test_no_message_shows_a_secret(tmp_path: Path) -> None:
    file = toml(
        tmp_path,
        "[database]\nurl = ['hunter2']\n[redirect]\nstats_token = 2222\nstats_tokn = 'hunter2'\n",
    )
    environment = {"REDIS_URL": "hunter2", "COUPONFLOW_REDIS_URL": "hunter2:hunter2@h"}

    with pytest.raises(ConfigurationInvalid) as raised:
        load_settings(file, environment)

    assert len(raised.value.problems) == 5
    assert "2222" not in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://u:hunter2@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u:hun@te/r2@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@x:hunter2@h/d", "postgresql://u@x:***@h/d"),
        ("redis://:hunter2@h", "redis://:***@h"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("unix:///s?Password=hunter2&db=1", "unix:///s?Password=***&db=1"),
    ],
)
def test_passwords_in_urls_are_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked


def test_a_description_has_every_key_with_its_source(tmp_path: Path) -> None:
    file = toml(tmp_path, "[clicks]\nflush_rows = 7\n[http]\ntrusted_proxies = ['::1', '10.0.0.1']")
    environment = {
        "DATABASE_URL": "postgresql://u:hunter2@h/d",
        "COUPONFLOW_REDIRECT_STATS_TOKEN": "hunter2",
    }

    described = describe_settings(load_with_sources(file, environment))

    assert len(described) == len(KEYS)
    assert [setting for setting in described if setting.source != "default"] == [
        ("[database] url", "DATABASE_URL", "postgresql://u:***@h/d", "environment"),
        ("[http] trusted_proxies", "COUPONFLOW_HTTP_TRUSTED_PROXIES", "::1,10.0.0.1", "file"),
        ("[redirect] stats_token", "COUPONFLOW_REDIRECT_STATS_TOKEN", "***", "environment"),
        ("[clicks] flush_rows", "COUPONFLOW_CLICKS_FLUSH_ROWS", "7", "file"),
    ]
    assert ("env", "COUPONFLOW_ENV", "development", "default") in described
