"""Written pages found by the kernel's soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst), Linux 3.11.

Reading the bits and clearing them are two steps, and a write between them would be lost. So all threads of the process
stand still for both, stopped by ptrace: for as long as the kernel needs to walk its page tables twice (some
milliseconds per GiB). What was read is worked out after they go on.

As everywhere: shared memory and files that are mapped shared are always dirty (others write there, and write(2) sets no
bit of ours). New mappings are marked by the kernel. Pages given back aren't, nor is what reading puts in their place:
the kernel's page of zeros, or the file's. Both show in a page's frame being another one than in the round before; so
does a page that the kernel moved, which then counts as written without need.

Only one at a time can clear the bits of a process: `criu pre-dump --track-mem` and this don't go together.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from runtime import proc
from runtime.errors import Unsupported
from runtime.tracking import pagemap, ptrace
from runtime.tracking.population import Frames, having, opened, replaced
from runtime.tracking.ranges import Range, merged, without
from runtime.tracking.tracker import Select
from runtime.tracking.vmas import Vma, anonymous, mappings
from runtime.tracking.watching import Watched, Watching

log = logging.getLogger(__name__)

_LARGEST = 1 << 36
"""Bytes of a mapping beyond which its entries (8 bytes for each page) aren't read: it counts as dirty."""
_STOP_SECONDS = 1.0


@dataclass(slots=True)
class _Process(Watched):
    watched: list[Range] = field(default_factory=list)
    frames: list[Frames] = field(default_factory=list)
    """Of `watched`."""


class SoftDirty(Watching[_Process]):
    """A `Tracker`."""

    name = "soft-dirty"
    compares = False

    def __init__(self, select: Select = anonymous) -> None:
        """Raises Unsupported."""
        if not pagemap.supports_soft_dirty():
            raise Unsupported(
                doing="tracking written memory with",
                target="soft-dirty bits",
                why="this kernel has none",
                hint="CONFIG_MEM_SOFT_DIRTY",
            )
        super().__init__(_Process, select)

    def stop(self) -> None:
        """Nothing to take back: cleared bits mean nothing to anybody else."""
        release_stuck()
        super().stop()

    def dirty(self, pid: int, *, frozen: bool = False) -> list[Range]:
        try:
            return self._dirty(self._process(pid), frozen)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise self._gone(pid) from error

    def _dirty(self, process: _Process, frozen: bool) -> list[Range]:
        pid = process.identity.pid
        read: list[tuple[int, array[int]]] = []
        try:
            with contextlib.nullcontext() if frozen else standing(pid):
                process.identity.check()
                vmas = [vma for vma in mappings(pid) if self._select(vma)]
                with opened(pid) as fd:
                    for vma in vmas:
                        if _trackable(vma):
                            read.append((vma.start, pagemap.entries(fd, vma.start, vma.end)))
                if not frozen:  # it's the last question, and clearing takes as long as reading
                    _clear(pid)
        except _Untouchable as reason:
            process.why_not, process.watched, process.frames = str(reason), [], []
            process.vmas = [vma for vma in mappings(pid) if self._select(vma)]
            return merged((vma.start, vma.end) for vma in process.vmas)
        process.why_not, process.vmas = "", vmas
        tracked = merged((vma.start, vma.end) for vma in vmas if _trackable(vma))
        found = [(vma.start, vma.end) for vma in vmas if not _trackable(vma)]
        for start, entries in read:
            found += having(entries, start, pagemap.SOFT_DIRTY)
        # What wasn't watched before: bits that somebody else cleared say nothing.
        found += without(tracked, process.watched)
        frames = [Frames.of(entries, start) for start, entries in read]
        found += replaced(process.frames, frames)
        process.watched, process.frames = tracked, frames
        return merged(found)


def _trackable(vma: Vma) -> bool:
    return (vma.anonymous or vma.copied) and vma.end - vma.start <= _LARGEST


def _clear(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"4")
    finally:
        os.close(fd)


class _Untouchable(Exception):
    """The process can't be stopped; why."""


_stuck: set[int] = set()
"""Threads that were asked to stop and didn't in time: let go of as soon as they do."""


@contextlib.contextmanager
def standing(pid: int) -> Iterator[None]:
    """All threads of PID stand still. Ends with the calling process, however that ends: the kernel lets them go."""
    release_stuck()
    seized: set[int] = set()
    seen: set[int] = set()
    try:
        while True:
            threads = {int(name) for name in os.listdir(f"/proc/{pid}/task")} - seen
            if not threads:
                break  # a standing thread makes no new ones
            for tid in threads:
                seen.add(tid)
                if _stop(pid, tid):
                    seized.add(tid)
        yield
    finally:
        for tid in seized:
            with contextlib.suppress(OSError):
                ptrace.detach(tid)


def release_stuck() -> None:
    """Detach from threads that stopped too late."""
    for tid in list(_stuck):
        try:
            stop = ptrace.stop_of(tid, wait=False)
            if stop is not None:
                ptrace.detach(tid, 0 if stop.event else stop.signal)
                _stuck.discard(tid)
        except OSError:
            _stuck.discard(tid)


def _stop(pid: int, tid: int) -> bool:
    """Whether the thread stands now; False when it has ended. Raises _Untouchable."""
    try:
        state = proc.state(pid, tid)
        if state in "ZX":
            return False  # a main thread that ended before the others; it writes nothing
        if state == "D":
            # It can't write its own memory, but it may wake at any time (the parent of a vfork, for instance).
            raise _Untouchable(f"thread {tid} sleeps uninterruptibly")
        ptrace.seize(tid, 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except OSError as error:
        raise _Untouchable(f"thread {tid}: {error.strerror}") from error
    ptrace.interrupt(tid)
    deadline = time.monotonic() + _STOP_SECONDS
    while True:
        try:
            stop = ptrace.stop_of(tid, wait=False)
        except ProcessLookupError:
            return False
        if stop is not None and stop.asked_for:
            return True
        if stop is not None:
            ptrace.resume(tid, stop.signal)
        if time.monotonic() > deadline:
            _stuck.add(tid)
            raise _Untouchable(f"thread {tid} doesn't stop")
        os.sched_yield()
