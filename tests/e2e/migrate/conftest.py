"""One lab for all migration tests; each begins and ends with empty hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.migrate.world import World, build_rootfs, opened
from tests.lab import Lab


@pytest.fixture(scope="session")
def ticker_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_rootfs(tmp_path_factory.mktemp("ticker") / "rootfs")


@pytest.fixture(scope="session")
def migration_lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def world(migration_lab: Lab, ticker_rootfs: Path, tmp_path: Path) -> Iterator[World]:
    with opened(migration_lab, ticker_rootfs, tmp_path) as made:
        yield made
