"""The pager with a task that does what CRIU's restored ones do, at moments of the test's choosing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import RuntimeFault
from runtime.pagecache.store import PageStore
from runtime.pager.client import SOCKET, Pager, Status
from tests import needs, runtag
from tests.e2e.warm_lab.lab import until

pytestmark = [needs.root, needs.compiler]

HERE = Path(__file__).parent
BASE = 0x200000000000
PAGE = 4096
PAGES = 96


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"ckpt-{runtag.TAG}-", dir="/tmp") as folder:
        out = Path(folder, "uffdtask")
        compiler = needs.find_tool("cc") or needs.find_tool("gcc")
        source = HERE / "warm_lab" / "uffdtask.c"
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


def content(page: int) -> bytes:
    return struct.pack("=512Q", *range(page * 512, page * 512 + 512))


class World:
    """A pager with its task's pages, and the task."""

    def __init__(self, program: Path, folder: Path, stack: contextlib.ExitStack) -> None:
        self.errors = folder / "pager.err"
        with self.errors.open("wb") as errors:
            self.pager = stack.enter_context(Pager(str(folder), errors=errors))
        store = stack.enter_context(PageStore())
        for page in range(PAGES):
            if page % 8 != 3:
                start = BASE + page * PAGE
                store[5].views(start, start + PAGE)[0][:] = content(page)
        self.store = store
        self.pager.pages(5, store[5])
        self.task = Task(program, folder)
        stack.callback(self.task.close)

    def kill_worker(self) -> None:
        before = self.pager.status().worker
        os.kill(before, signal.SIGKILL)
        until(lambda: self.pager.status().worker != before)

    def finish(self) -> Status:
        assert self.task.do("finish") == "ok"
        return self.pager.wait(30)


@pytest.fixture
def world(program: Path, ckpt_root: Path) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        yield World(program, ckpt_root, stack)


def test_touched_pages_come_at_once_and_all_others_later(world: World) -> None:
    world.pager.complete()
    assert world.task.do("touch", 40) == "ok"
    assert world.task.do("touch", 3) == "ok"  # one that is zeros
    status = world.pager.status()
    assert status.faults >= 2 and 0 < status.missing < PAGES * PAGE
    status = world.finish()
    assert status.missing == status.dropped == 0
    assert world.task.do("check") == "bad 0"


def test_filling_can_begin_before_the_tasks_run(world: World) -> None:
    world.pager.complete()
    world.pager.fill()
    until(lambda: world.pager.status().missing == 0)
    assert not world.pager.status().finished
    assert world.task.do("check") == "bad 0"
    assert world.finish().done


def test_memory_moves_from_the_cache_to_the_task(world: World) -> None:
    assert world.store.size > 0
    world.pager.complete()
    world.finish()
    assert world.store.size == 0


def test_a_fault_before_all_pages_are_there_waits(world: World) -> None:
    world.task.say("touch", 7)
    until(lambda: world.pager.status().faults == 1)
    start = BASE + 7 * PAGE
    world.store[5].views(start, start + PAGE)[0][:] = bytes(PAGE)
    world.store[5].views(start, start + PAGE)[0][:] = content(7)
    world.pager.complete()
    assert world.task.answer() == "ok"
    world.finish()


def test_a_forked_child_has_the_pages_that_were_missing_too(world: World) -> None:
    world.pager.complete()
    assert world.pager.status().fork_events
    world.task.do("write", 20, 10**6)
    assert world.task.do("fork") == "bad 0"
    world.finish()
    assert world.task.do("fork") == "bad 0"
    assert world.task.do("check") == "bad 0"


def test_moved_dropped_and_unmapped_memory_is_what_the_program_thinks(world: World) -> None:
    world.pager.complete()
    world.task.do("move", 10, PAGES + 4, 20)
    world.task.do("drop", 40, 8)
    world.task.do("drop", PAGES + 6, 2)
    world.task.do("unmap", 60, 10)
    assert world.task.do("touch", PAGES + 5) == "ok"
    assert world.task.do("fork") == "bad 0"
    status = world.finish()
    assert status.missing == status.dropped == 0
    assert world.task.do("check") == "bad 0"


def test_a_killed_worker_is_replaced_and_nobody_gets_zeros(world: World) -> None:
    world.pager.complete()
    world.task.do("move", 10, PAGES + 4, 20)
    world.task.do("drop", 40, 8)
    assert world.task.do("fork") == "bad 0"
    world.kill_worker()
    assert world.task.do("touch", PAGES + 9) == "ok"
    assert world.task.do("touch", 42) == "ok"
    world.task.do("move", PAGES + 4, 10, 20)
    world.kill_worker()
    assert world.task.do("fork") == "bad 0"
    world.finish()
    assert world.task.do("check") == "bad 0"
    assert "ended with status 0x9" in world.errors.read_text()


def test_a_fault_that_a_killed_worker_had_read_is_answered_by_the_next(world: World) -> None:
    world.task.say("touch", 3)
    until(lambda: world.pager.status().faults == 1)  # read, and held back
    world.kill_worker()
    world.pager.complete()
    assert world.task.answer() == "ok"
    world.finish()


def test_a_killed_keeper_changes_nothing(world: World) -> None:
    world.pager.complete()
    worker = world.pager.status().worker
    stat = Path(f"/proc/{worker}/stat").read_text()
    keeper = int(stat.rpartition(")")[2].split()[1])
    assert b"pager" in Path(f"/proc/{keeper}/cmdline").read_bytes()
    os.kill(keeper, signal.SIGKILL)
    assert world.task.do("fork") == "bad 0"
    assert world.finish().missing == 0
    assert world.task.do("check") == "bad 0"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_in_whatever_order_memory_is_right(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.pager.complete()
    mapped = [True] * PAGES + [False] * PAGES
    boundary = (PAGES // 2, PAGES // 2 + 1)  # pages of a mapping of their own

    def span(want: bool) -> tuple[int, int] | None:
        """Some neighbouring pages in one mapping, all mapped or none."""
        start, count = chance.randrange(2 * PAGES), chance.randrange(1, 9)
        pages = range(start, min(start + count, 2 * PAGES))
        if any(mapped[page] != want for page in pages) or set(pages) & set(boundary):
            return None
        return start, len(pages)

    for step in range(60):
        kind = chance.choice(["touch", "touch", "write", "move", "drop", "unmap", "fork", "kill"])
        source = span(True)
        if kind == "fork" and step % 3 == 0:
            assert world.task.do("fork") == "bad 0"
        elif kind == "kill" and step % 4 == 0:
            world.kill_worker()
        elif source is None:
            continue
        elif kind == "touch":
            assert world.task.do("touch", source[0]) == "ok", step
        elif kind == "write":
            world.task.do("write", source[0], step * 10**6 + 10**9)
        elif kind == "drop":
            world.task.do("drop", *source)
        elif kind == "unmap" and step % 5 == 0:
            world.task.do("unmap", *source)
            mapped[source[0] : sum(source)] = [False] * source[1]
        elif kind == "move":
            target = span(False)
            if target is None or target[1] < source[1] or _not_one(world.task, source):
                continue
            world.task.do("move", source[0], target[0], source[1])
            mapped[source[0] : sum(source)] = [False] * source[1]
            mapped[target[0] : target[0] + source[1]] = [True] * source[1]
    world.finish()
    assert world.task.do("check") == "bad 0"


def _not_one(task: Task, span: tuple[int, int]) -> bool:
    """Whether these pages lie in more than one mapping, which mremap refuses."""
    start = BASE + span[0] * PAGE
    end = start + span[1] * PAGE
    for line in Path(f"/proc/{task.process.pid}/maps").read_text().splitlines():
        low, high = (int(word, 16) for word in line.split()[0].split("-"))
        if low <= start < high:
            return end > high
    return True


def test_a_task_that_dies_is_no_reason_to_wait(world: World) -> None:
    world.pager.complete()
    world.task.close()
    status = world.pager.wait(30)
    assert status.done and status.ended == 1


def test_without_its_starter_it_goes_on_once_complete(world: World) -> None:
    world.pager.complete()
    world.pager.close()
    assert world.task.do("touch", 50) == "ok"
    assert world.task.do("fork") == "bad 0"
    assert world.task.do("finish") == "ok"
    assert world.task.do("check") == "bad 0"


def test_without_its_starter_it_ends_if_pages_are_missing(world: World) -> None:
    worker = world.pager.status().worker
    world.pager.close()
    until(lambda: not Path(f"/proc/{worker}").exists())


def test_without_a_criu_it_ends_with_its_starter(ckpt_root: Path) -> None:
    with Pager(str(ckpt_root)) as pager:
        worker = pager.status().worker
        pager.complete()
    until(lambda: not Path(f"/proc/{worker}").exists())


def test_a_directory_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RuntimeFault):
        Pager(-1)
