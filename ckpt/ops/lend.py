"""The source's half of a lazy move, once its container is frozen: pages are lent to the destination as it asks.

From COMMIT on the copy at the destination is the container; what is frozen here is a store of pages, unplugged, held by
the freezer, and destroyed when the destination has every page. The destination leads: it asks for lanes (again, after
each time that the link was lost), for pages, and says when it has all. So whoever holds the journal here can be the
lender, the migrating process or one that took over from it.

    {"do": "lanes", "for"}                         open two lanes, first the one for the bulk, then the urgent one
    {"do": "ask", "task", "runs", "urgent"}        send these pages
    {"do": "missing", "bytes"}                     for the progress display
    {"do": "finish"}                               marks on both lanes; nothing more will be asked for
    {"do": "lost", "why"}                          our only word: there are pages that nobody has any more
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ckpt.ops.carry import Carrier, Check, Task, has_memory, number_of
from ckpt.ops.convergence import Limits
from runtime.errors import NotFound, RuntimeFault
from runtime.pagesource.read import TaskReader
from runtime.pagesource.send import PageSender
from runtime.pagesource.serve import PageServing
from runtime.pagesource.wire import parse_extents
from runtime.tracking import population
from runtime.tracking.ranges import Range, common, merged, size, without
from transport.errors import TransportFault
from transport.lanes import LaneWriter

TOPIC = "pages"
"""Of the notes that the two halves exchange."""
Word = Mapping[str, Any]

log = logging.getLogger(__name__)


class Debt(Carrier):
    """In place of a carrier that copies: CRIU is to see nothing of the pages either, and none is sent; settle() says
    which there are. With copy_once() before the freeze, what isn't written after it is there already, and not owed."""

    def __init__(self, sender: PageSender, pids: Callable[[], list[int]]) -> None:
        super().__init__(sender, pids, limits=Limits())
        self.sender = sender
        self.size = 0
        """Bytes that the destination will ask for."""
        self._stale: dict[int, list[Range]] | None = None
        """What was written since copy_once()."""

    def copy_once(self, check: Check) -> None:
        """All of the memory while it runs still."""
        began = time.monotonic()
        self._tracker.start(self._pids())
        found = self._look()
        self._send(found, check)
        self._sender.flush()
        self.rest, self.rest_s = sum(map(size, found.values())), time.monotonic() - began
        self.why = "what is written after one round follows when it runs there"
        self._stale = {}

    def last(self, check: Check) -> None:
        if self._stale is not None:
            self._stale = self._look(frozen=True)
        for pid in self._pids():
            self._task(pid)

    def settle(self, check: Check) -> None:
        alive = set(self._pids())
        for pid, task in self._tasks.items():
            if pid not in alive and task.sent:
                self._sender.ended(task.number)
        for pid in alive:
            task = self._task(pid)
            with population.opened(pid) as pagemap:
                there = population.populated(pagemap, merged([*task.hidden, *task.fetch]))
            if gone := without(task.sent, there):
                self._forget(task, gone)
            owed = without(there, self._as_sent(pid, task))
            self.sender.owe(task.number, owed)
            self.size += size(owed)
        self.sender.mark()
        self.sender.flush()
        self.marks += 1

    def _as_sent(self, pid: int, task: Task) -> list[Range]:
        """What is surely as the destination has it: sent, watched up to the freeze, and not written."""
        if self._stale is None or pid not in self._stale:
            return []
        watched = merged((vma.start, vma.end) for vma in self._tracker.vmas(pid))
        return without(common(task.sent, watched), merged(self._stale[pid]))


class Lending:
    """PIDS: the frozen processes. SAY: a word to the other half. LANE: opens one, for who asked with a word.

    LOST: called with why the other host can't be served any longer over this link. Close it.
    """

    def __init__(
        self,
        pids: Callable[[], list[int]],
        *,
        say: Callable[[Word], None],
        lane: Callable[[str], LaneWriter],
        lost: Callable[[Exception], None],
        rate: float | None = None,
        show: Callable[[int], None] = lambda missing: None,
    ) -> None:
        self._pids = pids
        self._say = say
        self._lane = lane
        self._lost = lost
        self._rate = rate
        self._show = show
        self._readers: tuple[dict[int, TaskReader], ...] = ({}, {})
        self._serving: PageServing | None = None
        self._lanes: list[LaneWriter] = []
        self._written = 0
        self._broken = False
        self._words: queue.SimpleQueue[Word | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lending", daemon=True)
        self._thread.start()

    def begin(self, bulk: PageSender, urgent: LaneWriter) -> None:
        """The lanes that were opened before the freeze. BULK: has said what is owed. Raises RuntimeFault."""
        self._read_tasks()
        self._serve(bulk, PageSender(urgent.fd))

    def hear(self, word: Word) -> None:
        """From the thread that reads the link: doesn't wait."""
        self._words.put(word)

    @property
    def written(self) -> int:
        """Bytes on all lanes so far."""
        return self._written + (self._serving.written if self._serving is not None else 0)

    def close(self) -> None:
        self._words.put(None)
        self._thread.join()
        self._stop_serving()
        self._close_readers()

    # ---- the thread

    def _run(self) -> None:
        while (word := self._words.get()) is not None:
            try:
                self._carry_out(word)
            except NotFound as fault:
                self._tell_lost(fault)
            except (RuntimeFault, TransportFault, OSError, LookupError, TypeError) as fault:
                log.debug("lending failed", exc_info=True)
                self._lost(fault)

    def _carry_out(self, word: Word) -> None:
        do = word["do"]
        if do == "lanes":
            self._stop_serving()
            self._read_tasks()
            mark = str(word["for"])
            self._lanes.append(self._lane(mark))
            self._lanes.append(self._lane(mark))
            bulk, urgent = (PageSender(lane.fd) for lane in self._lanes)
            self._serve(bulk, urgent)
        elif do == "missing":
            self._show(int(word["bytes"]))
        elif self._serving is not None and do == "ask":
            runs = parse_extents(word["runs"])
            self._serving.ask(int(word["task"]), runs, urgent=bool(word["urgent"]))
        elif self._serving is not None and do == "finish":
            self._serving.finish()

    def _serve(self, bulk: PageSender, urgent: PageSender) -> None:
        bulk.rate = self._rate
        self._broken = False
        self._serving = PageServing(self._readers, bulk, urgent, on_fault=self._on_fault)

    def _on_fault(self, fault: RuntimeFault) -> None:
        if isinstance(fault, NotFound):
            self._tell_lost(fault)
        elif not self._broken:
            self._broken = True  # both lanes break at a time: say it once
            self._lost(fault)

    def _tell_lost(self, fault: NotFound) -> None:
        with contextlib.suppress(TransportFault):
            self._say({"do": "lost", "why": str(fault)[:1000]})

    def _stop_serving(self) -> None:
        if self._serving is not None:
            self._serving.close()
            self._written += self._serving.written
            self._serving = None
        for lane in self._lanes:  # only now: who still writes to a lane must find it open
            lane.abort()
        self._lanes = []

    def _read_tasks(self) -> None:
        """Raises NotFound if they are all gone."""
        self._close_readers()
        for pid in self._pids():
            if has_memory(pid):
                for readers in self._readers:
                    readers[number_of(pid)] = TaskReader(pid)
        if not self._readers[0]:
            raise NotFound(
                doing="reading the memory of", target="the container", why="its processes are gone"
            )

    def _close_readers(self) -> None:
        for readers in self._readers:
            for reader in readers.values():
                reader.close()
            readers.clear()
