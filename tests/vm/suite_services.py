"""Databases move under load from one machine to the other and back, with each way to find what they write meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.workload_lab.journey import Load
from tests.vm.guest import Guest
from tests.vm.installed import HOME
from tests.vm.pair import Pair
from tests.vm.segment import Segment
from tests.vm.settings import SUBNET

pytestmark = pytest.mark.timeout(1200)

ADDRESS = f"{SUBNET}.50"
TREE = "/root/service"


class _NearEnd:
    """Where the client is, as the lab's hosts are called."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment

    def popen(self, argv: list[str], **options: Any) -> subprocess.Popen[str]:
        return self._segment.popen(*argv, **options)

    def connects(self, port: int) -> bool:
        script = f"import socket; socket.create_connection(('{ADDRESS}', {port}), 5)"
        words = self._segment.argv(sys.executable, "-c", script)
        return subprocess.run(words, capture_output=True).returncode == 0


def _start(guest: Guest, service: str, user: str, command: str) -> None:
    """A root file system of the guest's own packages, made by what the project's tests have for it."""
    build = (
        f"from pathlib import Path; from tests.lab import rootfs; rootfs.{service}(Path('{TREE}'))"
    )
    guest.run(f'rm -rf {TREE}; cd {HOME} && .venv/bin/python -c "{build}"', timeout=600)
    flags = f"--network l2=br0,ip={ADDRESS}/24 --user {user}"
    guest.run(f"ckpt run -d --name service {flags} {TREE} -- {command}")


def _there_and_back(pair: Pair, kind: str, port: int, tracker: str) -> None:
    """There with TRACKER, and back with what that host has; the client never loses its connection, nor an answer."""
    near = _NearEnd(pair.segment)
    while not near.connects(port):
        pass
    load = Load(near, kind, ADDRESS, port)  # type: ignore[arg-type]
    try:
        load.goes_on()
        for source, there, choice in (
            (pair.a, pair.b, f"CKPT_TRACKER={tracker}"),
            (pair.b, pair.a, ""),
        ):
            words = f"{choice} ckpt migrate service {there.name} --mode warm --json"
            report = json.loads(source.text(words, timeout=600).splitlines()[-1])
            assert report["mode"] == "warm"
            assert report["tracker"] == tracker or not choice
            load.goes_on()
        report = load.end()
    finally:
        load.close()
    assert report["problem"] == ""
    assert report["requests"] > 200


def test_redis_with_soft_dirty_bits(pair: Pair) -> None:
    command = "redis-server --dir /data --appendonly yes --protected-mode no"
    _start(pair.a, "redis", "redis", command)
    _there_and_back(pair, "redis", 6379, "soft-dirty")


def test_postgresql_with_comparison_of_content(pair: Pair) -> None:
    _start(pair.a, "postgresql", "postgres", "postgres -D /data")
    _there_and_back(pair, "postgres", 5432, "compare")
