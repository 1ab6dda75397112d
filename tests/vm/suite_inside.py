"""The project's own tests with root, on pure cgroup v2 and a stock kernel, without systemd."""

from __future__ import annotations

import pytest

from tests.vm.guest import Guest
from tests.vm.inside import run_tests

pytestmark = pytest.mark.timeout(7200)

FILES = [
    "tests/contract/test_cgroups_contract.py",
    "tests/contract/test_tracking.py",  # Debian's kernels have soft-dirty bits
    "tests/e2e/test_cgroups.py",
    "tests/e2e/test_run_basics.py",
    "tests/e2e/test_disk_quota.py",  # they have project quotas
    "tests/e2e/test_network_bridge.py",
    "tests/e2e/test_network_l2.py",
    "tests/e2e/test_security.py",
    "tests/e2e/test_rootfs.py",
    "tests/e2e/test_images_stream.py",
    "tests/e2e/test_tree_owners.py",
]


@pytest.mark.parametrize("file", FILES)
def test_passes_in_a_guest(a: Guest, file: str) -> None:
    assert "passed" in run_tests(a, file)
