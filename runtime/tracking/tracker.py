"""Which memory of a process changed since the last look.

The caller copies the memory of running processes, round after round; a tracker tells it what to copy again:

    tracker.start(pids)
    loop:
        for each process:
            for start, end in tracker.dirty(pid):        # asks, and in the same step watches anew
                data = read(pid, start, end)             # after dirty(), never before
                if tracker.compares:
                    tracker.taken(pid, start, data)      # these very bytes, not another look at the same place
            forget all pages outside of tracker.vmas(pid)
    tracker.stop()

What a tracker promises: a page whose content differs from what the caller took is in a range that the next `dirty`
returns. It may return more. A page that nobody can be sure of is returned: new mappings, processes that nobody
watched, memory of kinds that the kernel doesn't track. Memory that was given back (MADV_DONTNEED) reads as zeros now;
that is a change as well. Of a private mapping of a file that may be written (`Vma.copied`) only what the process has
written there itself is looked at (population.copies tells which pages these are), and that it has given such a page
back. What was unmapped is no range of anything: `vmas` shows what there is.

What the caller promises: reading after asking. Of a range that was returned it has afterwards what it read, and nothing
(which is zeros) of the rest: memory that holds no page, or that can't be read any more. What isn't mapped it forgets:
something else that takes the place is a change, but an empty mapping is nothing new to who has nothing there. A tracker
that `compares` is told what was read (`taken`), since it has no other way to know what the caller has; it gets the
caller's own buffer, so nothing is copied for that.

The last question is asked while the processes are frozen (`frozen=True`): nothing can change after it. The first
must not be: a frozen process can't be begun with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from runtime.tracking.ranges import Range
from runtime.tracking.vmas import Vma

Select = Callable[[Vma], bool]
"""Which mappings the caller wants to hear of."""


class Tracker(Protocol):
    """One way to find written memory. Not for several threads."""

    name: str
    compares: bool
    """Whether it must be told what was read. A page that it isn't told of stays dirty."""

    def start(self, pids: Iterable[int]) -> None:
        """Watch these processes from now on. Their first `dirty` returns everything.

        A process that can't be watched is no error: all of it is dirty, each time.
        """

    def dirty(self, pid: int, *, frozen: bool = False) -> list[Range]:
        """Sorted, disjoint ranges of addresses that may have changed since the last call; watches anew.

        A process that wasn't started is started. With FROZEN the caller holds the process in a frozen cgroup: nothing
        is tried that would need it to run, so that a new one is simply dirty. Raises NotFound when it has ended.
        """

    def taken(self, pid: int, start: int, data: bytes | memoryview) -> None:
        """The caller read DATA at START after `dirty` returned it: whole pages. For a tracker that `compares`."""

    def vmas(self, pid: int) -> list[Vma]:
        """The selected mappings as the last `dirty` saw them."""

    def why_all(self, pid: int) -> str:
        """Why everything in a process counts as dirty each time; "" where it is tracked."""

    def stop(self) -> None:
        """End it; the processes are as if they had never been watched. Fine to call twice."""


def tell_taken(tracker: Tracker, pid: int, ranges: Iterable[Range], data: memoryview) -> None:
    """RANGES of the process were read: DATA has them one after the other."""
    at = 0
    for start, end in ranges:
        tracker.taken(pid, start, data[at : at + end - start])
        at += end - start
