import importlib.resources
from pathlib import Path

import pytest

from couponflow.kernel.resources import ResourceMissing, resource_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package folder that stands in for the installed one."""
    package = tmp_path / "site-packages" / "couponflow"
    package.mkdir(parents=True)
    monkeypatch.setattr(
        importlib.resources, "files", lambda name: tmp_path / "site-packages" / name
    )
    return package


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("select 1")
    return path


def test_a_checkout_has_its_migrations() -> None:
    assert (resource_path("sql", "migrations") / "0001_catalogue.sql").is_file()


def test_the_wheel_has_them_inside_the_package(package: Path) -> None:
    file = write(package / "_sql" / "migrations" / "0001_first.sql")
    assert resource_path("sql", "migrations", "0001_first.sql") == file


def test_a_checkout_has_them_beside_the_package(package: Path) -> None:
    file = write(package.parent / "config" / "couponflow.toml")
    assert resource_path("config", "couponflow.toml") == file


def test_the_wheels_own_copy_comes_before_a_neighbour_of_the_same_name(package: Path) -> None:
    own = write(package / "_sql" / "queries" / "clicks.sql")
    write(package.parent / "sql" / "queries" / "clicks.sql")
    assert resource_path("sql", "queries", "clicks.sql") == own


def test_a_missing_file_is_named_with_both_places_it_was_looked_for(package: Path) -> None:
    with pytest.raises(ResourceMissing) as refused:
        resource_path("sql", "queries", "absent.sql")
    message = str(refused.value)
    assert "sql/queries/absent.sql is missing" in message
    assert str(package / "_sql" / "queries" / "absent.sql") in message
    assert str(package.parent / "sql" / "queries" / "absent.sql") in message
