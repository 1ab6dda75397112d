"""Programs that the contracts of trackers and carriers are held against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.tracking_programs import Churn, compiled


@pytest.fixture(scope="module")
def churn_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("churn", tmp_path_factory.mktemp("programs"))


@pytest.fixture
def program(churn_program: Path) -> Iterator[Churn]:
    running = Churn(churn_program)
    yield running
    running.close()
