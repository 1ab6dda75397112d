"""The destination's half of a lazy move: the container runs, and its pages come as they are needed, then all others.

    the pager   says which page a task waits for; is told what has come, places it, and wakes who waits
    Wanted      in which order to ask (runtime/pager/wanted.py)
    the lender  sends what is asked for (ckpt/ops/lend.py), on two lanes

What is still to come is noted beside the pages (pagecache.Owed), in memory that the pager holds as well: when we die,
or the link, tasks that touch a missing page wait, and another agent goes on with what the notes say.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ckpt.ops.landing import Intake
from runtime.errors import SystemFault
from runtime.pagecache.store import PageStore
from runtime.pager.client import Ended, Upstream
from runtime.pager.wanted import Ask, Range, Wanted
from runtime.pagesource.wire import build_extents, extents
from transport.errors import LinkLost

_TICK = 0.1
_TELL = 0.25
"""Seconds between two words on how much is missing."""
Word = Mapping[str, Any]


class PagesLost(SystemFault):
    """Pages of a container that runs here are gone for good: it can't go on."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """faults: how many had to wait for a page of the other host. whole_ns: when every page was in place."""

    faults: int
    whole_ns: int


class Fetch:
    """STORE: the pages as the pager has them. INTAKES: the lanes, bulk and urgent. SAY: a word to the lender.

    It begins at once, in a thread of its own. Close it; the intakes and the upstream are the caller's.
    """

    def __init__(
        self,
        store: PageStore,
        upstream: Upstream,
        intakes: list[Intake],
        say: Callable[[Word], None],
    ) -> None:
        self._upstream = upstream
        self._intakes = intakes
        self._marks = [intake.marks for intake in intakes]
        self._say = say
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._over = threading.Event()
        self._told = 0.0
        self.fault: BaseException | None = None
        self._fetched: Fetched | None = None
        for intake in intakes:
            intake.on_pages = self._came
        self._wanted = Wanted({task: _owed(store, task) for task in store})
        self._threads = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("pager", self._listen), ("fetch", self._run))
        ]
        for thread in self._threads:
            thread.start()

    def hear(self, word: Word) -> None:
        """A word of the lender; from any thread."""
        if word.get("do") == "lost":
            self._events.put(("lost", str(word.get("why", ""))))

    def wait(self, check: Callable[[], None]) -> Fetched:
        """Until every page is in place. Raises PagesLost, Ended (the pager), what broke the link, what CHECK raises."""
        while True:
            if self.fault is not None:
                raise self.fault
            if self._fetched is not None:
                return self._fetched
            check()
            self._over.wait(_TICK)

    def close(self) -> None:
        """Tasks that wait for a page go on waiting for it."""
        self._over.set()
        self._events.put(("over", None))
        for thread in self._threads:
            thread.join()

    # ---- threads

    def _came(self, task: int, ranges: list[Range]) -> None:
        """From the intakes: the pages are in the store, and noted so."""
        self._upstream.here(task, ranges)
        self._events.put(("came", (task, ranges)))

    def _listen(self) -> None:
        """What the pager says."""
        try:
            while not self._over.is_set():
                word = self._upstream.hear(_TICK)
                if self._over.is_set():
                    return
                if "want" in word:
                    self._events.put(("want", word["want"]))
                elif "done" in word:
                    self._events.put(("done", int(word["faults"])))
                    return
        except Ended as fault:
            self._events.put(("ended", fault))

    def _run(self) -> None:
        try:
            self._fetched = self._fetch()
        except BaseException as fault:
            self.fault = fault
        self._over.set()

    def _fetch(self) -> Fetched:
        done: int | None = None
        while done is None and not self._wanted.done:
            while ask := self._wanted.next():
                self._ask(ask)
            self._tell()
            done = self._event()
        self._say({"do": "finish"})
        for intake, before in zip(self._intakes, self._marks, strict=True):
            intake.wait_marks(before + 1, self._check)
        while done is None:
            done = self._event()
        return Fetched(done, time.time_ns())

    def _ask(self, ask: Ask) -> None:
        runs = build_extents(extents(ask.ranges))
        self._say({"do": "ask", "task": ask.task, "runs": runs, "urgent": ask.urgent})

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told > _TELL:
            self._told = now
            self._say({"do": "missing", "bytes": self._wanted.missing})

    def _event(self) -> int | None:
        """Take events; the number of faults when the pager is done."""
        self._check()
        try:
            event = self._events.get(timeout=_TICK)
        except queue.Empty:
            return None
        while True:
            match event:
                case ("came", (task, ranges)):
                    self._wanted.arrived(task, ranges)
                case ("want", (task, address)):
                    self._wanted.fault(task, address)
                case ("done", faults):
                    return int(faults)
                case ("lost", why):
                    raise PagesLost(doing="fetching", target="the rest of the memory", why=str(why))
                case ("ended", fault):
                    raise fault
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return None

    def _check(self) -> None:
        if self._over.is_set():
            raise LinkLost(doing="fetching", target="pages", why="it was given up", retry=True)
        for intake in self._intakes:
            if intake.fault is not None:
                raise intake.fault


def _owed(store: PageStore, task: int) -> list[Range]:
    owed = store[task].owed
    return list(owed.runs()) if owed is not None else []
