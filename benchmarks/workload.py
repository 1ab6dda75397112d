"""The program that measures its own standstill (load.c), and its container in the lab."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runtime import cgroups
from tests.lab import Host, Lab

SOURCE = Path(__file__).with_name("load.c")
READY = 0
NAME = "load"
_SETTLE_TICKS = 100
"""Ticks after a move that have to come before its gap is looked for: the gap has an end then."""


def build(directory: Path) -> Path:
    """A root file system with nothing but the workload."""
    root = directory / "root"
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc", "ticks", "old"):
        (root / name).mkdir(parents=True)
    subprocess.run(["cc", "-O2", "-static", "-o", root / "bin/load", SOURCE], check=True)
    return root


def command(mib: int, per_ms: int) -> list[str]:
    """Its command line in a container that has the directory of its ticks at /ticks."""
    return ["/bin/load", str(mib), "/ticks/t", str(per_ms)]


class Ticks:
    """The workload's own clock, as it writes it to a file that we see wherever it runs."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def values(self) -> list[int]:
        data = self._path.read_bytes() if self._path.exists() else b""
        return [value for (value,) in struct.iter_unpack("=q", data[: len(data) // 8 * 8])]

    def count(self) -> int:
        return self._path.stat().st_size // 8 if self._path.exists() else 0

    def wait_ready(self, timeout: float = 120) -> None:
        self._wait(lambda: READY in self.values()[:1], "become ready", timeout)

    def wait_on(self, timeout: float = 120) -> None:
        """Until it has ticked for a while from now on."""
        before = self.count()
        self._wait(lambda: self.count() >= before + _SETTLE_TICKS, "go on", timeout)

    def gap(self, since_ns: int) -> tuple[int, int]:
        """The largest step after a moment: from and to, in ns of CLOCK_REALTIME."""
        stamps = [value for value in self.values() if value > since_ns]
        pairs = zip(stamps, stamps[1:], strict=False)
        return max(pairs, key=lambda pair: pair[1] - pair[0], default=(0, 0))

    def gap_ms(self, since_ns: int) -> float:
        begin, end = self.gap(since_ns)
        return (end - begin) / 1e6

    def verdict(self, timeout: float = 120, *, after: int = 0) -> int:
        """How many pages are wrong, once it has said so. AFTER: this many verdicts are old."""
        self._wait(lambda: len(self.verdicts()) > after, "verify its memory", timeout)
        return self.verdicts()[-1]

    def verdicts(self) -> list[int]:
        """All that it has said so far."""
        return [-value - 1 for value in self.values() if value < 0]

    def _wait(self, check: Callable[[], object], what: str, timeout: float) -> None:
        until = time.monotonic() + timeout
        while not check():
            if time.monotonic() > until:
                raise TimeoutError(f"the workload did not {what} in {timeout:g} s")
            time.sleep(0.05)


class WrongPages(Exception):
    """Memory was lost or changed: no figure is worth anything."""


class Load:
    """A container with the workload in the lab, wherever it is by now."""

    def __init__(self, lab: Lab, here: Host, there: Host, ticks: Ticks) -> None:
        self._lab = lab
        self.here, self.there = here, there
        self.ticks = ticks

    def move(self, mode: str, *more: str) -> tuple[float, dict[str, Any]]:
        """To the other host: the gap in ms as the workload saw it, and ckpt's report."""
        self.ticks.wait_on()
        since = time.time_ns()
        words = ["ckpt", "migrate", NAME, self.there.name, "--mode", mode, "--json", *more]
        done = self.here.run(words, timeout=600)
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        self.here, self.there = self.there, self.here
        self.ticks.wait_on()
        return self.ticks.gap_ms(since), report

    def verify(self) -> None:
        """Every page is what it must be. Raises WrongPages."""
        known = len(self.ticks.verdicts())
        self.here.ckpt("kill", "-s", "USR1", NAME)
        if bad := self.ticks.verdict(after=known):
            raise WrongPages(f"{bad} pages are wrong after the moves")


@contextlib.contextmanager
def hosts(storage: str) -> Iterator[tuple[Lab, Path]]:
    """A lab, and a directory that containers may see."""
    with (
        tempfile.TemporaryDirectory(prefix="ckpt-bench-") as name,
        Lab(storage=storage) as lab,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        yield lab, folder
    cgroups.remove_monitors(cgroups.detect())


@contextlib.contextmanager
def running(lab: Lab, root: Path, mib: int, per_ms: int, folder: Path) -> Iterator[Load]:
    """On the lab's host a, until the block ends."""
    here, there = lab["a"], lab["b"]
    volume = folder / f"ticks-{time.time_ns()}"
    volume.mkdir()
    volume.chmod(0o777)
    network = f"l2=br0,ip={lab.container_address()[0]}"
    ticks = Ticks(volume / "t")
    try:
        here.ckpt(
            *("run", "-d", "--name", NAME, "--network", network, "-v", f"{volume}:/ticks"),
            *(str(root), "--", *command(mib, per_ms)),
        )
        ticks.wait_ready()
        yield Load(lab, here, there, ticks)
    finally:
        for each in (here, there):
            each.run(["ckpt", "rm", "-f", NAME], check=False)
