"""The pager with a task that does what CRIU's restored ones do, at moments of the test's choosing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import RuntimeFault
from runtime.pagecache.store import TaskPages
from runtime.pager.client import Pager
from tests import needs
from tests.e2e.warm_lab.lab import until
from tests.e2e.warm_lab.uffdtask import (
    BASE,
    PAGE,
    PAGES,
    World,
    content,
    keeper_of,
    live,
    program,
    put,
)

__all__ = ["program"]  # a fixture
pytestmark = [needs.root, needs.compiler]


def every_page(pages: TaskPages) -> None:
    for page in range(PAGES):
        put(pages, page)


@pytest.fixture
def world(program: Path, ckpt_root: Path) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        yield World(program, ckpt_root, stack, every_page)


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
    keeper = keeper_of(worker)
    assert b"pager" in Path(f"/proc/{keeper}/cmdline").read_bytes()
    os.kill(keeper, signal.SIGKILL)
    assert world.task.do("fork") == "bad 0"
    assert world.finish().missing == 0
    assert world.task.do("check") == "bad 0"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_in_whatever_order_memory_is_right(world: World, seed: int) -> None:
    world.pager.complete()
    kinds = ("touch", "touch", "write", "move", "drop", "unmap", "fork", "kill")
    besides = {"kill": (4, world.kill_worker)}
    live(world.task, random.Random(seed), 60, kinds, world.task.do, besides)
    world.finish()
    assert world.task.do("check") == "bad 0"


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
