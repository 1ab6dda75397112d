"""Programs that are tracked, and how a test talks to them."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from runtime.tracking.pagemap import PAGE
from runtime.tracking.population import copies, opened
from runtime.tracking.ranges import Range
from runtime.tracking.tracker import Tracker
from tests.patience import patient

HERE = Path(__file__).parent


def compiled(name: str, folder: Path) -> Path:
    """The program NAME.c, built once per folder."""
    target = folder / name
    if not target.exists():
        source = HERE / f"{name}.c"
        words = ["cc", "-O1", "-mavx", "-pthread", "-w", "-o", str(target), str(source)]
        subprocess.run(words, check=True)
    return target


class Churn:
    """A running churn.c: does one thing to its memory at a time, and waits."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid
        self.children: list[int] = []

    def do(self, command: str, *values: int) -> int:
        """Do it and wait until it is done; the number that it answers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(" ".join([command, *(f"{value:x}" for value in values)]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().split()
        assert answer and answer[0] == "ok", (command, answer, self._process.poll())
        self._settle()
        number = int(answer[1], 16) if len(answer) > 1 else 0
        if command in ("fork", "fork-write"):
            self.children.append(number)
        if command == "end-child":
            self.children.pop()
        return number

    def _settle(self) -> None:
        """Wait until it waits for the next command: after its answer it still runs for a moment."""
        deadline = time.monotonic() + patient(30)
        # proc_pid_syscall(5): read(2) of standard input
        while not Path(f"/proc/{self.pid}/syscall").read_text().startswith("0 0x0 "):
            assert time.monotonic() < deadline
            time.sleep(0)

    def map(self, kind: str, size: int) -> int:
        return self.do(f"map {kind}", size)

    def close(self) -> None:
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Copy:
    """A copy of a process's memory, kept up to date by nothing but what a tracker says."""

    def __init__(self, tracker: Tracker, pid: int) -> None:
        self._tracker = tracker
        self._pid = pid
        self.pages: dict[int, bytes] = {}

    def follow(self, *, frozen: bool = False) -> list[Range]:
        """One round; what was dirty."""
        ranges = self._tracker.dirty(self._pid, frozen=frozen)
        assert ranges == sorted(ranges)
        assert all(a[1] <= b[0] for a, b in zip(ranges, ranges[1:], strict=False)), "overlapping"
        mapped = {(vma.start, vma.end) for vma in self._tracker.vmas(self._pid)}
        gone = [page for page in self.pages if not any(a <= page < b for a, b in mapped)]
        for page in gone:
            del self.pages[page]
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            for start, end in ranges:
                for page in range(start, end, PAGE):
                    self.pages.pop(page, None)
                    with contextlib.suppress(OSError):
                        memory.seek(page)
                        data = memory.read(PAGE)
                        self.pages[page] = data
                        if self._tracker.compares:
                            self._tracker.taken(self._pid, page, data)
        return ranges

    def differences(self) -> list[int]:
        """Pages that are not what the process has. It must not run meanwhile."""
        found = []
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory, opened(self._pid) as fd:
            for vma in self._tracker.vmas(self._pid):
                own = copies(fd, [(vma.start, vma.end)])
                for page in range(vma.start, vma.end, PAGE):
                    written = any(start <= page < end for start, end in own)
                    if vma.copied and not written and page not in self.pages:
                        continue  # the file's
                    try:
                        memory.seek(page)
                        now = memory.read(PAGE)
                    except OSError:
                        continue
                    if now != self.pages.get(page, bytes(PAGE)):
                        found.append(page)
        return found


class SelfCheck:
    """A running selfcheck.c."""

    def __init__(self, program: Path, mode: str, folder: Path) -> None:
        self._counter = folder / f"counter-{mode}-{os.getpid()}"
        self._counter.write_bytes(bytes(24))
        self._errors = self._counter.with_suffix(".errors")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen([program, mode, self._counter], stderr=errors)
        self.pid = self._process.pid

    def _counters(self) -> tuple[int, int, int]:
        return struct.unpack("=3Q", self._counter.read_bytes())

    @property
    def rounds(self) -> int:
        return self._counters()[0]

    @property
    def nudges(self) -> int:
        """How often it had to be woken because a signal had no effect."""
        return self._counters()[2]

    def fault(self) -> str:
        """What it found wrong; "" when it runs on."""
        status = self._process.poll()
        if status is None and not self._counters()[1]:
            return ""
        return f"status {status}: {self._errors.read_text().strip()}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._counter.unlink()
        self._errors.unlink()


def have_avx() -> bool:
    return " avx " in Path("/proc/cpuinfo").read_text() and shutil.which("cc") is not None


@contextlib.contextmanager
def closing(thing: object) -> Iterator[object]:
    try:
        yield thing
    finally:
        thing.close()  # type: ignore[attr-defined]


assert mmap.PAGESIZE == PAGE
