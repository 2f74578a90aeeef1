import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from couponflow.config import CUSTOMARY_VARIABLES, KEYS, SECRETS, VARIABLES, Settings
from couponflow.config_loading import load_settings, load_with_sources

ROOT = Path(__file__).parents[1]
DOCUMENTED = ROOT / "config" / "couponflow.toml"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads a `couponflow.toml` that happens to lie in the current folder."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)


def test_the_documented_file_changes_nothing() -> None:
    assert load_settings(DOCUMENTED, {}) == Settings()


def test_the_documented_file_holds_every_key_at_its_default(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=\w)", "", DOCUMENTED.read_text(), flags=re.MULTILINE)
    (tmp_path / "every_key.toml").write_text(text)

    loaded = load_with_sources(tmp_path / "every_key.toml", {})

    assert loaded.settings == Settings()
    assert loaded.sources == dict.fromkeys(KEYS, "file")
    assert tomllib.loads(text) == msgspec.json.decode(msgspec.json.encode(Settings()))


def test_the_example_environment_is_valid(tmp_path: Path) -> None:
    lines = (ROOT / "config" / "couponflow.env.example").read_text().splitlines()
    (tmp_path / "token").write_text("hunter2")
    (tmp_path / "secret").write_text("0123456789abcdef0123456789abcdef\n")
    environment = dict(line.split("=", 1) for line in lines if re.match(r"#?[A-Z_]+=", line))
    environment = {name.removeprefix("#"): value for name, value in environment.items()}
    del environment["COUPONFLOW_CONFIG"], environment["DATABASE_URL_FILE"]
    environment["COUPONFLOW_REDIRECT_STATS_TOKEN_FILE"] = str(tmp_path / "token")
    environment["COUPONFLOW_API_JWT_SECRET_FILE"] = str(tmp_path / "secret")

    assert load_settings(None, environment).env == "production"


def test_no_two_keys_share_a_variable_and_every_secret_is_a_key() -> None:
    assert len(VARIABLES) == len(KEYS) + len(CUSTOMARY_VARIABLES)
    assert {f"{variable}_FILE" for variable in VARIABLES}.isdisjoint(VARIABLES)
    assert set(KEYS) >= SECRETS
