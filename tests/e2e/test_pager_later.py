"""Pages that come later: a task gets them when it touches them, whoever dies meanwhile, and never anything else."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.pagecache.store import TaskPages
from runtime.pager.client import Ended, Upstream, ended_well
from runtime.pager.wanted import Ask, Wanted
from tests import needs
from tests.e2e.warm_lab import uffdtask
from tests.e2e.warm_lab.lab import until
from tests.e2e.warm_lab.uffdtask import BASE, PAGE, PAGES, content, keeper_of, live, program, put

__all__ = ["program"]  # a fixture
pytestmark = [needs.root, needs.compiler]


class Fetcher:
    """What an agent does, with all pages at hand. It delivers only as long as `allowed` is set."""

    def __init__(self, folder: Path) -> None:
        self.upstream = Upstream.connect(folder)
        self.allowed = threading.Event()
        self.faults = -1
        self.wants: list[int] = []
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        if self.upstream is None:
            return
        pages = self.upstream.pages
        wanted = Wanted({n: list(p.owed.runs()) for n, p in pages.items() if p.owed is not None})
        with contextlib.suppress(Ended):
            while not self._over:
                word = self.upstream.hear(0.005)
                if "done" in word:
                    self.faults = word["faults"]
                    return
                if "want" in word:
                    wanted.fault(*word["want"])
                    self.wants.append((word["want"][1] - BASE) // PAGE)
                while self.allowed.is_set() and (ask := wanted.next()):
                    self._deliver(ask)
                    wanted.arrived(ask.task, ask.ranges)

    def _deliver(self, ask: Ask) -> None:
        assert self.upstream is not None
        pages = self.upstream.pages[ask.task]
        for start, end in ask.ranges:
            for at in range(start, end, PAGE):
                number = (at - BASE) // PAGE
                if number % 8 == 3:
                    pages.forget(at, at + PAGE)
                else:
                    pages.views(at, at + PAGE)[0][:] = content(number)
            pages.arrived(start, end)
        self.upstream.here(ask.task, list(ask.ranges))

    def close(self) -> None:
        if self._over:
            return
        self._over = True
        self._thread.join()
        if self.upstream is not None:
            self.upstream.close()
            for pages in self.upstream.pages.values():
                pages.close()


def one_in_twelve(pages: TaskPages) -> None:
    for page in range(0, PAGES, 12):
        start = BASE + page * PAGE
        put(pages, page)
        pages.owe(start + PAGE, start + 12 * PAGE)


class World(uffdtask.World):
    """A pager whose task has some pages at once, and most of them later."""

    def __init__(self, program: Path, folder: Path, stack: contextlib.ExitStack) -> None:
        super().__init__(program, folder, stack, one_in_twelve)
        self._stack = stack
        self.pager.complete()

    def fetcher(self) -> Fetcher:
        fetcher = Fetcher(self.folder)
        self._stack.callback(fetcher.close)
        return fetcher


@pytest.fixture
def world(program: Path, ckpt_root: Path) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        yield World(program, ckpt_root, stack)


def test_a_touched_page_is_asked_for_and_its_task_waits_for_it(world: World) -> None:
    status = world.pager.fill()
    assert status.dropped == 0
    until(lambda: world.pager.status().placed == 8 * PAGE)  # what is here
    world.task.say("touch", 40)
    until(lambda: world.pager.status().awaited == 1)
    fetcher = world.fetcher()
    until(lambda: fetcher.wants == [40])
    fetcher.allowed.set()
    assert world.task.answer() == "ok"
    assert world.finish().missing == 0
    until(lambda: fetcher.faults == 1)
    assert ended_well(world.folder) and Upstream.connect(world.folder) is None
    assert world.task.do("check") == "bad 0"


def test_a_place_that_is_missing_is_noticed_before_its_pages_come(world: World) -> None:
    world.task.do("unmap", 61, 5)
    until(lambda: world.pager.status().missing < (PAGES - 4) * PAGE)
    assert world.pager.fill().dropped == 0  # the program gave it back itself: an event told
    assert world.pager.status().missing


def test_whoever_dies_the_task_waits_and_goes_on(world: World) -> None:
    first = world.fetcher()
    world.task.say("touch", 17)
    until(lambda: first.wants == [17])
    world.kill_worker()
    first.close()
    world.kill_worker()
    second = world.fetcher()
    until(lambda: second.wants == [17])
    second.allowed.set()
    assert world.task.answer() == "ok"
    world.finish()
    assert world.task.do("check") == "bad 0"


def test_a_task_that_dies_while_it_waits_ends_the_pager(world: World) -> None:
    world.pager.fill()
    world.task.say("touch", 40)
    until(lambda: world.pager.status().awaited == 1)
    world.task.close()
    assert world.pager.wait(30).ended == 1


def test_a_pager_that_dies_is_told_from_one_that_is_done(world: World) -> None:
    fetcher = world.fetcher()
    worker = world.pager.status().worker
    for pid in (keeper_of(worker), worker):
        os.kill(pid, signal.SIGKILL)
    assert fetcher.upstream is not None
    fetcher.close()
    with pytest.raises(Ended):
        until(lambda: Upstream.connect(world.folder))


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_in_whatever_order_memory_is_right(world: World, seed: int) -> None:
    """As in test_pager.py, with pages that come now and then, and fetchers that come and go."""
    chance = random.Random(seed)
    fetcher = world.fetcher()

    def do(*words: object) -> str:
        """The task may need a page for it: then they come."""
        world.task.say(*words)
        fetcher.allowed.set()
        answer = world.task.answer()
        if chance.random() < 0.7:
            fetcher.allowed.clear()
        return answer

    def leave() -> None:
        nonlocal fetcher
        fetcher.close()
        fetcher = world.fetcher()

    kinds = ("touch", "write", "move", "drop", "unmap", "fork", "kill", "leave")
    besides = {"kill": (4, world.kill_worker), "leave": (2, leave)}
    live(world.task, chance, 50, kinds, do, besides)
    fetcher.allowed.set()
    world.finish()
    assert world.task.do("check") == "bad 0"
