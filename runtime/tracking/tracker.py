"""Which memory of a process changed since the last look.

The caller copies the memory of running processes, round after round; a tracker tells it what to copy again:

    tracker.start(pids)
    loop:
        for each process:
            for start, end in tracker.dirty(pid):        # asks, and in the same step watches anew
                data = read(pid, start, end)             # after dirty(), never before
                tracker.taken(pid, start, data)
    tracker.stop()

What a tracker promises: a page whose content differs from what the caller took is in a range that the next `dirty`
returns. It may return more. A page that nobody can be sure of is returned: new mappings, processes that nobody
watched, memory of kinds that the kernel doesn't track. Memory that was given back (MADV_DONTNEED) reads as zeros now;
that is a change as well. What was unmapped is no range of anything: `vmas` shows what there is.

What the caller promises: reading after asking, and `taken` for what it read. It need not read all of a range: memory
that can't be read any more has gone, and comes back as a change if something else takes its place.

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
        """The caller read DATA at START after `dirty` returned it. Whole pages."""

    def vmas(self, pid: int) -> list[Vma]:
        """The selected mappings as the last `dirty` saw them."""

    def why_all(self, pid: int) -> str:
        """Why everything in a process counts as dirty each time; "" where it is tracked."""

    def stop(self) -> None:
        """End it; the processes are as if they had never been watched. Fine to call twice."""
