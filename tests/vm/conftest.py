"""Guests for the suites: booted once per init system, looked at after each test, their logs kept when one fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import runtag
from tests.vm.guest import Guest
from tests.vm.installed import Installed, installed
from tests.vm.pair import Pair
from tests.vm.settings import DEFAULT_SUITE

SUITE = os.environ.get("SUITE", DEFAULT_SUITE)
SUITE_B = os.environ.get("SUITE_B", SUITE)
"""The other guest's, for pairs of different systems."""
LOGS = Path(os.environ.get("CKPT_VM_LOGS", "/var/tmp/ckpt-vm/logs"))


@pytest.fixture(scope="session")
def disks() -> tuple[Installed, Installed]:
    first = installed(SUITE, f"ckpt-{runtag.TAG}")
    return first, (first if SUITE_B == SUITE else installed(SUITE_B, f"ckpt-{runtag.TAG}"))


@pytest.fixture(scope="session")
def _started(disks: tuple[Installed, Installed]) -> Iterator[Callable[[str], Pair]]:
    pairs: dict[str, Pair] = {}
    folder = Path(f"/var/tmp/ckpt-{runtag.TAG}-vm")

    def started(init: str) -> Pair:
        """Only one pair is up at a time: guests are large."""
        if init not in pairs:
            while pairs:
                pairs.popitem()[1].close()
            pairs[init] = Pair(f"ckpt-{runtag.TAG}", folder / init, disks, init=init)
            pairs[init].up()
        return pairs[init]

    try:
        yield started
    finally:
        for pair in pairs.values():
            pair.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pair(request: pytest.FixtureRequest, _started: Callable[[str], Pair]) -> Iterator[Pair]:
    """Two guests with ckpt, with the tiny init unless the module says `INIT = "systemd"`."""
    ready = _started(getattr(request.module, "INIT", "tiny"))
    failed_before = request.session.testsfailed
    try:
        yield ready
    finally:
        if request.session.testsfailed > failed_before:
            ready.keep_logs(LOGS / request.node.name)
        ready.clear()
    assert ready.complaints() == []


@pytest.fixture
def a(pair: Pair) -> Guest:
    return pair.a


@pytest.fixture
def b(pair: Pair) -> Guest:
    return pair.b
