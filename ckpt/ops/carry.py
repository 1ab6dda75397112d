"""The memory of a container, copied while it runs: to another host, or into a checkpoint.

    rounds()     while it runs: everything once, then again and again what was written meanwhile
    hide()       asked by the veil when CRIU comes to a process: the ranges that we carry, which CRIU is not to touch
    last()       the tasks are frozen: what was written since the last round
    settle()     CRIU is done: what it left to us, and what the destination must forget
    stop()       the tracker lets go of the tasks

The source's half of a warm migration does all of this. A checkpoint of a container that runs on needs no settle():
CRIU leaves nothing to us, and what is not to be carried is seen when the checkpoint is put together (assemble.py).

A page travels under the process id that the container knows, since that is what CRIU's images and the restored tasks
have. At the end the destination holds exactly the populated pages of the hidden ranges: what is hidden and did not
arrive is zeros, and what arrived and is not hidden (a mapping that went away meanwhile) is taken back by settle().
What processes share goes the same way, object by object (carry_shared.py). What they have written to private mappings
of files travels under numbers of its own, and is left to CRIU unless the destination can put it in place.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ckpt.ops.carry_shared import SharedCarrier
from ckpt.ops.convergence import Limits, Next, Round, decide
from ckpt.ops.taken import private_by_kind
from images.lazy_entries import plan_lazy
from images.pages import PageRun, build_page_map, parse_page_map
from runtime import proc
from runtime.errors import NotFound, RuntimeFault, Unsupported
from runtime.pagesource.read import TaskReader
from runtime.pagesource.sink import PageSink
from runtime.pagesource.wire import COPIES_FROM
from runtime.tracking import choose, population
from runtime.tracking.ranges import Range, common, merged, size, without
from runtime.tracking.tracker import tell_taken
from runtime.tracking.vmas import Vma, mappings
from runtime.veil.carry import (
    carryable,
    carryable_copies,
    is_candidate,
    is_candidate_or_copied,
)

NOTEWORTHY = 1 << 20
"""Bytes of a process that nobody can track: less of it costs no pause worth a word."""

Check = Callable[[], None]


class NotConverging(Unsupported):
    """It writes faster than it is copied, and the user wants no long freeze: another way of dumping is no answer."""


class Task:
    """One process: its memory to read, its number in the container, and what of it the destination holds.

    COPIES: what it has written to private mappings of files, which is a task of its own.
    """

    def __init__(self, pid: int, *, copies: bool = False) -> None:
        self.pid = pid
        self.number = number_of(pid) + (COPIES_FROM if copies else 0)
        self.reader = TaskReader(pid)
        self.sent: list[Range] = []
        self.hidden: list[Range] = []
        self.vmas: list[Vma] = []
        """As they were when CRIU came."""
        self.fetch: list[Range] = []


class Carrier:
    """Use as a context manager. PIDS: the container's processes now. SINK: where the pages go; closed at the end."""

    def __init__(
        self,
        sink: PageSink,
        pids: Callable[[], list[int]],
        *,
        limits: Limits,
        shared: SharedCarrier | None = None,
        copies: bool = False,
        on_round: Callable[[int], None] = lambda written: None,
        on_new: Callable[[list[int]], None] = lambda pids: None,
    ) -> None:
        """SHARED: carries what processes share, over the same lane; closed at the end. Without it that is left to CRIU.

        COPIES: carry what was written to private mappings of files as well.

        ON_NEW: called with all processes when there are new ones between two rounds; may raise to end it."""
        self._all_pids = pids
        self._on_new = on_new
        self._limits = limits
        self._on_round = on_round
        self._copies = copies
        self._tasks: dict[int, Task] = {}
        """By pid; what was written to private mappings of files by its negative."""
        self._owners: dict[int, int] = {}
        self._dumped: dict[int, Sequence[PageRun]] = {}
        self._lock = threading.Lock()
        self._tracker = choose.best(is_candidate_or_copied if copies else is_candidate)
        self._sender = sink
        self._shared = shared
        self.tracker = self._tracker.name
        self.done: list[Round] = []
        self.why = ""
        """Why the rounds ended."""
        self.rest = 0
        """Bytes that the last of them sent."""
        self.rest_s = 0.0
        self.marks = 0
        self.last_bytes = 0
        self.last_ns = 0

    def __enter__(self) -> Carrier:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._sender.abort()
        self.stop()
        self._sender.close()
        for task in self._tasks.values():
            task.reader.close()
        if self._shared is not None:
            self._shared.close()

    @property
    def written(self) -> int:
        """Bytes on the lane so far."""
        return self._sender.written

    def abort(self) -> None:
        """From any thread: write nothing more."""
        self._sender.abort()

    def _pids(self) -> list[int]:
        return [pid for pid in self._all_pids() if has_memory(pid)]

    # ---- while it runs

    def rounds(self, check: Check) -> None:
        """Copy until the rest is small, or no longer gets smaller. CHECK may raise to end it.

        Raises NotConverging when it must converge and doesn't.
        """
        self._tracker.start(self._pids())
        while True:
            check()
            found = self._look()
            dirty = sum(map(size, found.values()))
            if self._shared is not None:
                dirty += self._shared.look()
            decision = decide(self.done, dirty, self._limits)
            if decision.next is Next.GIVE_UP:
                raise NotConverging(
                    doing="copying", target="the memory while it runs", why=decision.why,
                    hint="without --abort-if-not-converging it is frozen for the rest", retry=True,
                )  # fmt: skip
            began = time.monotonic()
            self._send(found, check)
            if self._shared is not None:
                self._shared.send(check)
            self._sender.flush()
            if decision.next is Next.FREEZE:
                self.why, self.rest = decision.why, dirty
                self.rest_s = time.monotonic() - began
                return
            self.done.append(Round(dirty, time.monotonic() - began))
            self._on_round(self.written)

    def once_more(self, check: Check) -> None:
        """After rounds(), when something else has taken its time."""
        if self._shared is not None:
            self._shared.look()
            self._shared.send(check)
        self._send(self._look(), check)
        self._sender.flush()

    def _look(self, *, frozen: bool = False) -> dict[int, list[Range]]:
        """By pid: the populated pages that may have changed since the last look; tells what was given back as gone."""
        found: dict[int, list[Range]] = {}
        pids = self._pids()
        if not frozen and self._tasks and not self._tasks.keys() >= set(pids):
            self._on_new(pids)
        for pid in pids:
            with contextlib.suppress(NotFound, FileNotFoundError, ProcessLookupError):
                self._task(pid)
                dirty = self._tracker.dirty(pid, frozen=frozen)
                vmas = self._tracker.vmas(pid)
                copied = merged((vma.start, vma.end) for vma in vmas if vma.copied)
                mapped = merged((vma.start, vma.end) for vma in vmas if not vma.copied)
                with population.opened(pid) as pagemap:
                    there = population.populated(pagemap, common(dirty, mapped))
                    copies = population.copies(pagemap, common(dirty, copied))
                found[pid] = there
                self._take_back(pid, without(dirty, there), None if frozen else mapped)
                if copies or -pid in self._tasks:
                    found[-pid] = copies
                    self._task(-pid)
                    self._take_back(-pid, without(dirty, copies), None if frozen else copied)
        return found

    def _take_back(self, key: int, gone: list[Range], mapped: list[Range] | None) -> None:
        """What was sent, and is GONE or not MAPPED any more. In the frozen window (None) settle() does the latter."""
        task = self._tasks[key]
        stray = without(task.sent, mapped) if mapped is not None else []
        if gone := merged([*common(gone, task.sent), *stray]):
            self._forget(task, gone)

    def _task(self, key: int) -> Task:
        # The veil and last() may both be the first to come to a process.
        with self._lock:
            task = self._tasks.get(key)
            return task if task is not None else self._new_task(key)

    def _new_task(self, key: int) -> Task:
        try:
            task = Task(abs(key), copies=key < 0)
        except RuntimeFault as fault:
            raise NotFound(doing=fault.doing, target=fault.target, why=fault.why) from fault
        before = self._tasks.pop(self._owners.get(task.number, 0), None)
        if before is not None:  # it ended, and the container gave its number to this one
            self._sender.ended(task.number)
            before.reader.close()
        self._owners[task.number] = key
        self._tasks[key] = task
        return task

    def untracked(self) -> dict[int, tuple[int, str]]:
        """Processes that are copied as a whole each time: bytes, and why."""
        found = {
            key: (size(t.sent), self._tracker.why_all(key))
            for key, t in self._tasks.items()
            if key > 0
        }
        return {pid: one for pid, one in found.items() if one[1]}

    def _send(self, found: dict[int, list[Range]], check: Check, *, quick: bool = False) -> int:
        pages = 0
        # In the frozen window (quick) nobody asks again.
        compares = self._tracker.compares and not quick
        for key, ranges in found.items():
            check()
            task = self._tasks.get(key)
            if task is None:
                continue  # it ended, and another has its number
            try:
                pages += self._sender.send(
                    task.number,
                    task.reader,
                    ranges,
                    quick=quick,
                    took=partial(tell_taken, self._tracker, task.pid) if compares else None,
                )
            except NotFound:
                continue  # it ended; settle() tells the destination
            task.sent = merged([*task.sent, *ranges])
        return pages * 4096

    def _forget(self, task: Task, ranges: list[Range]) -> None:
        self._sender.gone(task.number, ranges)
        task.sent = without(task.sent, ranges)

    # ---- in the frozen window

    def hide(self, pid: int) -> list[Range]:
        """For runtime.veil.Veil, which asks in a thread of its own."""
        if pid not in self._pids():
            return []  # CRIU tries the call on itself
        task = self._task(pid)
        task.vmas = mappings(pid)
        task.hidden = carryable(pid, task.vmas)
        if not self._copies:
            return task.hidden
        copies = self._task(-pid)
        copies.hidden = carryable_copies(pid, task.vmas)
        return [*task.hidden, *copies.hidden]

    def hide_shared(self, device: int, inode: int) -> bool:
        """The same, for memory that processes share."""
        return self._shared is not None and self._shared.hide(device, inode)

    def last(self, check: Check) -> None:
        """The tasks are frozen: what was written since the last round."""
        with ThreadPoolExecutor(1, "shared memory") as beside:
            looked = beside.submit(self._shared.look, frozen=True) if self._shared else None
            self.last_bytes = self._send(self._look(frozen=True), check, quick=True)
            if looked is not None and self._shared is not None:
                looked.result()
                self.last_bytes += self._shared.send(check, quick=True)
        self.last_ns = time.time_ns()

    def rewrite(self, number: int, data: bytes) -> bytes:
        """The page map of the task NUMBER with lazy entries for what we carry; notes what CRIU left to be fetched."""
        task = next((t for t in self._tasks.values() if t.number == number), None)
        if task is None:
            return data
        page_map = parse_page_map(data, f"of task {number}")
        self._dumped[number] = page_map.runs
        plan = plan_lazy(page_map, task.hidden)
        task.fetch = list(plan.fetch)
        return build_page_map(plan.page_map.pages_id, plan.page_map.runs)

    def kept(self, number: int) -> list[Range]:
        """Of task NUMBER, what went out, is still as it was then, and was not shown to CRIU."""
        task = self._tasks.get(self._owners.get(number, 0))
        return common(task.sent, task.hidden) if task is not None else []

    def hidden_shared(self) -> dict[int, int]:
        """Likewise, of what processes share: numbers by inode."""
        return self._shared.hidden() if self._shared is not None else {}

    def left_to_criu(self) -> dict[str, int]:
        """Bytes of private memory that CRIU wrote, by kind; after rewrite()."""
        found: Counter[str] = Counter()
        for number, runs in self._dumped.items():
            task = self._tasks[self._owners[number]]
            copies = self._tasks.get(-task.pid)
            hidden = copies.hidden if copies is not None else []
            found.update(private_by_kind(runs, task.vmas, task.hidden, hidden))
        return dict(found)

    def hidden(self, number: int) -> list[Range]:
        """What CRIU was not shown of the task NUMBER."""
        return self._tasks[self._owners[number]].hidden if number in self._owners else []

    def settle(self, check: Check) -> None:
        """CRIU has dumped everything: send what it left to us, take back what is not carried, and set the mark."""
        alive = set(self._pids())
        for key, task in self._tasks.items():
            if task.pid not in alive:
                self._sender.ended(task.number)
                continue
            if task.fetch:
                with population.opened(task.pid) as pagemap:
                    there = population.populated(pagemap, task.fetch)
                self.last_bytes += self._send({key: there}, check, quick=True)
            stray = without(task.sent, merged([*task.hidden, *task.fetch]))
            if stray:
                self._forget(task, stray)
        if self._shared is not None:
            self._shared.settle()
        self._sender.mark()
        self._sender.flush()
        self.marks += 1

    def stop(self) -> None:
        """Let go of the tasks; they are as if nobody had watched them."""
        self._tracker.stop()


def has_memory(pid: int) -> bool:
    """Not for a zombie, nor for one that is gone: there is nothing to carry."""
    return proc.state(pid) not in "ZX"


def number_of(pid: int) -> int:
    """The process id as its container sees it."""
    try:
        return proc.number_inside(pid)
    except (FileNotFoundError, ProcessLookupError, IndexError):
        raise NotFound(doing="looking at", target=f"process {pid}", why="it has ended") from None
