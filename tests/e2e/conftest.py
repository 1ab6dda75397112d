"""Fixtures of the tests that use the real command line on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.box import Box, make_rootfs, opened


@pytest.fixture(scope="session")
def small_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A busybox root file system; read-only for tests."""
    return make_rootfs(tmp_path_factory.mktemp("busybox") / "rootfs")


@pytest.fixture
def box(ckpt_root: Path, small_rootfs: Path) -> Iterator[Box]:
    """A ckpt host of the test's own."""
    with opened(ckpt_root, small_rootfs) as made:
        yield made
