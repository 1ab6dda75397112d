"""A task that does what CRIU's restored ones do (uffdtask.c), at moments of the test's choosing; and its pager."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from runtime.pagecache.store import PageStore, TaskPages
from runtime.pager.client import SOCKET, Pager, Status
from tests import needs, runtag
from tests.e2e.warm_lab.lab import until

BASE = 0x200000000000
PAGE = 4096
PAGES = 96


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"ckpt-{runtag.TAG}-", dir="/tmp") as folder:
        out = Path(folder, "uffdtask")
        compiler = needs.find_tool("cc") or needs.find_tool("gcc")
        source = Path(__file__).with_suffix(".c")
        subprocess.run([str(compiler), "-O2", "-o", out, source], check=True)
        yield out


class Task:
    """The program, and its orders."""

    def __init__(self, program: Path, folder: Path, number: int = 5, pages: int = PAGES) -> None:
        argv = [str(program), str(folder / SOCKET), str(number), str(pages)]
        self.process: subprocess.Popen[str] = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.answer() == "ready"

    def say(self, *words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, *words: object) -> str:
        self.say(*words)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def is_one(self, start: int, count: int) -> bool:
        """Whether these pages lie in one mapping: mremap refuses others."""
        low, high = BASE + start * PAGE, BASE + (start + count) * PAGE
        for line in Path(f"/proc/{self.process.pid}/maps").read_text().splitlines():
            begin, end = (int(word, 16) for word in line.split()[0].split("-"))
            if begin <= low < end:
                return high <= end
        return False


def content(page: int) -> bytes:
    return struct.pack("=512Q", *range(page * 512, page * 512 + 512))


class World:
    """A pager with its task's pages, as LAY_OUT has them, and the task."""

    def __init__(
        self,
        program: Path,
        folder: Path,
        stack: contextlib.ExitStack,
        lay_out: Callable[[TaskPages], None],
    ) -> None:
        self.folder = folder
        self.errors = folder / "pager.err"
        with self.errors.open("wb") as errors:
            self.pager = stack.enter_context(Pager(str(folder), errors=errors))
        self.store = stack.enter_context(PageStore())
        lay_out(self.store[5])
        self.pager.pages(5, self.store[5])
        self.task = Task(program, folder)
        stack.callback(self.task.close)

    def kill_worker(self) -> None:
        before = self.pager.status().worker
        os.kill(before, signal.SIGKILL)
        until(lambda: self.pager.status().worker != before)

    def finish(self) -> Status:
        assert self.task.do("finish") == "ok"
        return self.pager.wait(30)


def put(pages: TaskPages, page: int) -> None:
    """What the task expects there; every eighth page is zeros."""
    if page % 8 != 3:
        start = BASE + page * PAGE
        pages.views(start, start + PAGE)[0][:] = content(page)


def keeper_of(worker: int) -> int:
    stat = Path(f"/proc/{worker}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def live(
    task: Task,
    chance: random.Random,
    steps: int,
    kinds: Sequence[str],
    do: Callable[..., str],
    besides: Mapping[str, tuple[int, Callable[[], object]]],
) -> None:
    """Random things that programs do with their memory; DO gives TASK its orders.

    BESIDES: what else may happen, and in every how many of the STEPS at the most.
    """
    mapped = [True] * PAGES + [False] * PAGES
    boundary = {PAGES // 2, PAGES // 2 + 1}  # pages of a mapping of their own

    def span(want: bool) -> tuple[int, int] | None:
        """Some neighbouring pages in one mapping, all mapped or none."""
        start, count = chance.randrange(2 * PAGES), chance.randrange(1, 9)
        pages = range(start, min(start + count, 2 * PAGES))
        if any(mapped[page] != want for page in pages) or set(pages) & boundary:
            return None
        return start, len(pages)

    for step in range(steps):
        kind = chance.choice(kinds)
        source = span(True)
        if kind in besides:
            every, happen = besides[kind]
            if step % every == 0:
                happen()
        elif kind == "fork":
            if step % 3 == 0:
                assert do("fork") == "bad 0"
        elif source is None:
            continue
        elif kind == "touch":
            assert do("touch", source[0]) == "ok", step
        elif kind == "write":
            do("write", source[0], step * 10**6 + 10**9)
        elif kind == "drop":
            do("drop", *source)
        elif kind == "unmap" and step % 5 == 0:
            do("unmap", *source)
            mapped[source[0] : sum(source)] = [False] * source[1]
        elif kind == "move":
            target = span(False)
            if target is None or target[1] < source[1] or not task.is_one(*source):
                continue
            do("move", source[0], target[0], source[1])
            mapped[source[0] : sum(source)] = [False] * source[1]
            mapped[target[0] : target[0] + source[1]] = [True] * source[1]
