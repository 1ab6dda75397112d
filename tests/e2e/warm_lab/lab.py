"""The container, seen from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests import needs
from tests.patience import patient

HERE = Path(__file__).parent
_VERDICT = re.compile(r"V (\S+) bad=(\d+) gap_us=(\d+) rounds=(\d+)")


def until(
    condition: Callable[[], object], why: Callable[[], str] = str, seconds: float = 60
) -> None:
    end = time.monotonic() + patient(seconds)
    while not condition():
        assert time.monotonic() < end, why()
        time.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Verdict:
    who: str
    bad: int
    gap_ms: float
    rounds: int


class Hog:
    """A running pagehog. pid: of the container's first process, on the host."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.log = Path(f"/proc/{pid}/root/tmp/log")

    def lines(self, prefix: str) -> list[str]:
        try:
            return [line for line in self.log.read_text().splitlines() if line.startswith(prefix)]
        except OSError:
            return []

    def pids(self) -> list[int]:
        """All its processes, the first one first."""
        found = [self.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def rounds(self) -> int:
        return sum(verdict.rounds for verdict in self.check())

    def check(self, number: int = signal.SIGUSR1, expect: int = 0) -> list[Verdict]:
        """Let every process check its memory. NUMBER: SIGUSR2 for a fork by each that checks instead."""
        before = len(self.lines("V "))
        pids = self.pids()
        for pid in pids:
            os.kill(pid, number)
        count = before + len(pids)
        until(lambda: len(self.lines("V ")) >= count, lambda: f"no verdict: {self.lines('V ')}")
        return [parse(line) for line in self.lines("V ")[before:]]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    @property
    def alive(self) -> bool:
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state not in "ZX"


def parse(line: str) -> Verdict:
    match = _VERDICT.match(line)
    assert match, line
    return Verdict(match[1], int(match[2]), int(match[3]) / 1000, int(match[4]))


@cache
def program(folder: Path) -> Path:
    """The static pagehog in a root directory, built once per folder."""
    root = folder / "root"
    for name in ("proc", "dev", "tmp", "old"):
        (root / name).mkdir(parents=True, exist_ok=True)
    compiler = needs.find_tool("cc") or needs.find_tool("gcc")
    assert compiler is not None
    subprocess.run(
        [compiler, "-O2", "-static", "-pthread", "-o", root / "pagehog", HERE / "pagehog.c"],
        check=True,
    )
    return root


def contained_child(pid: int) -> int | None:
    """The child of PID that is the first process of a pid namespace; a helper may be there before it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in map(int, children):
            if re.search(r"^NSpid:\s+\d+\s+1$", Path(f"/proc/{child}/status").read_text(), re.M):
                return child
    except FileNotFoundError:
        pass
    return None


@contextlib.contextmanager
def started(
    folder: Path, mebibytes: int = 16, threads: int = 1, children: int = 0, base: int = 0
) -> Iterator[Hog]:
    """The running container; dead at the end of the block."""
    root = program(folder)
    words = ["/pagehog", mebibytes, threads, children, "/tmp/log"]
    outside = subprocess.Popen(
        [sys.executable, "-I", "-S", HERE / "inside.py", root, str(base), *map(str, words)],
        stdin=subprocess.DEVNULL,
    )
    with outside:
        try:
            until(lambda: contained_child(outside.pid) is not None, lambda: "it did not start")
            hog = Hog(contained_child(outside.pid) or 0)
            until(lambda: len(hog.lines("READY")) == 1 + children, lambda: "it is not ready")
            yield hog
        finally:
            outside.kill()  # and with it, by PDEATHSIG, the tree


def criu() -> str:
    program = needs.find_criu()
    assert program is not None
    return program


COMMON = ("--stream", "--manage-cgroups=ignore", "-v4")


def log_of(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(lines[-40:])
