"""Guests for the suites: booted once per init system, looked at after each test, their logs kept when one fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import runtag
from tests.vm.guest import Guest
from tests.vm.installed import READY, Installed
from tests.vm.pair import Pair

LOGS = Path(os.environ.get("CKPT_VM_LOGS", "/var/tmp/ckpt-vm/logs"))


@pytest.fixture(scope="session")
def disks() -> tuple[Installed, Installed]:
    """What run.py made ready; the checkout may have changed since, and an installation takes minutes."""
    if READY not in os.environ:
        pytest.skip("guests are made ready by make test-vm")
    first, *other = (Installed(Path(folder)) for folder in os.environ[READY].split(":"))
    return first, (other or [first])[0]


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
            ready.keep_logs(LOGS / request.node.name.replace("/", "_"))
        ready.clear()
    assert ready.complaints() == []


@pytest.fixture
def a(pair: Pair) -> Guest:
    return pair.a


@pytest.fixture
def b(pair: Pair) -> Guest:
    return pair.b


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is told beside the guests' logs at once: the run may take half an hour more."""
    if report.failed:
        folder = LOGS / report.nodeid.rpartition("::")[2].replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{report.when}.txt").write_text(f"{report.longreprtext}\n")
