"""Fixtures of the catalogue's tests."""

from pathlib import Path

import pytest

from couponflow.kernel.database import Database
from tests.catalogue.importer import MERCHANTS, OFFERS, USERS, Importer


@pytest.fixture
def run(database: Database, tmp_path: Path) -> Importer:
    return Importer(database, tmp_path)


@pytest.fixture
async def filled(run: Importer) -> Importer:
    """An importer on a database that holds MERCHANTS, OFFERS and USERS."""
    await run("merchants", MERCHANTS)
    await run("offers", OFFERS)
    await run("users", USERS)
    return run
