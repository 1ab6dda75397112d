"""One restored address space and its userfaultfd."""

from __future__ import annotations

import errno

from runtime.pager import uffd
from runtime.pager.pending import Pending

TYPE_CHECKING = False  # importing typing costs the pager milliseconds
if TYPE_CHECKING:
    from runtime.pagecache.store import TaskPages

PAGE = 4096
FAULT = 64 << 10
"""Bytes placed at a fault, from the page that was touched on: its neighbours are likely to be next."""
CHUNK = 256 << 10
"""Bytes placed at a time by the filling: 0.1 to 0.2 ms that a fault may have to wait. Larger ones are not faster."""
_NOWHERE = 64 << 10
"""vm.mmap_min_addr's usual value: the lowest address that could be somebody's; nothing of ours is there."""
_WINDOW = 1 << 30
"""Source memory is contiguous up to a multiple of this, see TaskPages.address."""


class Task:
    """fd: the userfaultfd. number: the process id as the container sees it (a fork's child has its parent's).

    pages: where its pages lie; None for a task without any, whose memory is zeros.
    """

    def __init__(self, number: int, fd: int) -> None:
        self.number = number
        self.fd = fd
        self.pages: TaskPages | None = None
        self.pending = Pending()
        self.ended = False
        self.faults = 0
        self.placed = 0
        """Bytes."""
        self.dropped = 0
        """Bytes of pages for which there was no memory registered, although nobody said that it was given back."""
        self.again: list[int] = []
        """Faults that wait until an event has been read."""
        self.waiting: list[int] = []
        """Faults that wait for pages which are still to come."""
        self.asked: set[int] = set()
        """For which of them somebody was asked."""
        self.arrived: list[tuple[int, int]] = []
        """What has come and is to be placed next."""
        self.starved = False
        """All that is missing is still to come."""
        self._skipped = 0
        """Bytes still to come that the filling has passed over since something was placed."""
        self._moved = False
        self._shared = False
        self._cursor = 0
        self._most = CHUNK

    def begin(self, pages: TaskPages | None, known: Pending | None = None) -> None:
        """All its pages are in the cache now. KNOWN: where, if somebody knows."""
        self.pages = pages
        if pages is None:
            self.pending = Pending()
        elif known is not None and pages.owed is None:
            self.pending = known.copy()
        else:
            self.pending = Pending(_runs(pages))

    @property
    def done(self) -> bool:
        return self.ended or not self.pending

    @property
    def busy(self) -> bool:
        """Whether there is something that can be placed now, as far as we know."""
        return not self.done and (not self.starved or bool(self.arrived))

    def come(self, ranges: list[tuple[int, int]]) -> None:
        """These pages are not to come any more: they are here."""
        self.arrived += ranges
        if self._moved:  # what came may be anywhere
            self.look_again()

    def look_again(self) -> None:
        """More may have come than we were told."""
        self.starved, self._skipped = False, 0

    def look_whether_ended(self) -> None:
        """For a task in which nothing can be placed now, which would tell."""
        found = self.pending.first() if not self.ended else None
        if found is not None and uffd.copy(self.fd, found[0], _NOWHERE, PAGE)[1] == errno.ESRCH:
            self.ended = True

    def drop_homeless(self) -> None:
        """Before anything runs: whatever is to come must have a place. Adds to `dropped` what hasn't.

        A copy from where nothing is fails with EFAULT, but with ENOENT before that where not one registered mapping
        reaches from the first page to the last. So many ranges in one mapping are asked about at once, and mappings
        are found by halves.
        """
        ranges = [(start, end) for start, end, _ in self.pending.ranges()]
        rest = [(0, len(ranges))] if ranges else []
        while rest:
            first, last = rest.pop()
            start, end = ranges[first][0], ranges[last - 1][1]
            if self._has_place(start, end):
                continue
            if last - first > 1:
                half = (first + last) // 2
                rest += [(first, half), (half, last)]
            else:
                self._drop_homeless(start, end)

    def _drop_homeless(self, start: int, end: int) -> None:
        rest = [(start, end)]
        while rest:
            start, end = rest.pop()
            if self._has_place(start, end):
                continue
            if end - start == PAGE:
                self.pending.remove(start, end)
                self.dropped += PAGE
            else:
                half = start + (end - start) // PAGE // 2 * PAGE
                rest += [(start, half), (half, end)]

    def _has_place(self, start: int, end: int) -> bool:
        error = uffd.copy(self.fd, start, _NOWHERE, end - start)[1]
        return error not in (errno.ENOENT, errno.EINVAL)

    def fault(self, address: int) -> None:
        """Place the page at ADDRESS and some behind it."""
        address &= ~(PAGE - 1)
        while not self.ended:
            found = self.pending.find(address)
            if found is None:
                if not self._zero(address):
                    self.again.append(address)
                return
            start, end, shift = found
            end = self._here(start, min(end, start + FAULT), shift)
            if end == start:
                self.waiting.append(address)
                return
            placed = self.placed
            if not self._place(start, end, shift, FAULT):
                self.again.append(address)
                return
            if self.placed > placed:
                return

    def _zero(self, address: int) -> bool:
        """Nothing is to come here. False: not now."""
        error = uffd.zero(self.fd, address, PAGE)
        if error == errno.EAGAIN:
            return False
        if error == errno.ESRCH:
            self.ended = True
        elif error:
            # Placed, or unmapped, since it was asked for: look again.
            uffd.wake(self.fd, address, PAGE)
        return True

    def fill(self) -> bool:
        """Place one chunk of what is missing. False: not now, an event has to be read first."""
        while self.arrived:
            found = self.pending.within(*self.arrived[-1])
            if found is None or self._here(found[0], found[1], found[2]) == found[0]:
                self.arrived.pop()
                continue
            return self._place(found[0], self._here(*found), found[2], CHUNK)
        found = self.pending.first(self._cursor)
        if found is None or self.starved:
            return True
        start, end, shift = found
        here = self._here(start, min(end, start + CHUNK), shift)
        if here > start:
            return self._place(start, here, shift, CHUNK)
        assert self.pages is not None and self.pages.owed is not None
        self._cursor = self.pages.owed.first_here(start + shift, end + shift) - shift
        self._skipped += self._cursor - start
        if self._skipped >= self.pending.size:  # once around
            self.starved, self._skipped = True, 0
        return True

    def _here(self, start: int, end: int, shift: int) -> int:
        """Up to where the pages from START on have come, at most END."""
        if self.pages is None or self.pages.owed is None:
            return end
        return self.pages.owed.first(start + shift, end + shift) - shift

    def _place(self, start: int, end: int, shift: int, most: int) -> bool:
        """Some of that range; False: not now. Raises OSError (no memory, for example): nothing has changed."""
        assert self.pages is not None
        source = start + shift
        length = min(end - start, most, self._most, _WINDOW - source % _WINDOW)
        done, error = uffd.copy(self.fd, start, self.pages.address(source), length)
        if done:
            self._settle(start, start + done, source)
            self._most = min(CHUNK, self._most * 2)
            self.placed += done
            return True
        if error == errno.EAGAIN:
            return False
        if error == errno.ESRCH:
            self.ended = True
        elif error == errno.EEXIST:
            # CRIU put it there itself, or it was placed before. Whoever waits for it need not.
            self._settle(start, start + PAGE, source)
            uffd.wake(self.fd, start, PAGE)
        elif error in (errno.ENOENT, errno.EINVAL):
            # Not one registered mapping from start to end: find its boundary by halves.
            if length > PAGE:
                self._most = length // PAGE // 2 * PAGE
            else:
                self._most = CHUNK
                self._settle(start, start + PAGE, source)
                self.dropped += PAGE
        else:
            raise OSError(error, f"placing {length} bytes at {start:#x} of task {self.number}")
        return True

    def _settle(self, start: int, end: int, source: int) -> None:
        self.pending.remove(start, end)
        # From elsewhere now, if it was a fault or an arrival: it takes a whole round again to see that all is to come.
        self._cursor, self._skipped = end, 0
        if self.pages is not None and not self._shared:
            # Its memory goes to the very pages that are placed next: there is never twice as much in use.
            self.pages.forget(source, source + end - start)

    # ---- events, in the order in which they were read

    def removed(self, start: int, end: int) -> None:
        """munmap, or madvise(MADV_DONTNEED and the like): what is touched there from now on is zeros."""
        self.pending.remove(start, end)

    def moved(self, source: int, target: int, length: int) -> None:
        """mremap."""
        self.pending.move(source, target, length)
        self._moved = True

    def forked(self, fd: int) -> Task:
        """The child's: what was placed before is in its memory as well; the rest both need."""
        child = Task(self.number, fd)
        child.pages, child.pending, child._moved = self.pages, self.pending.copy(), self._moved
        self._shared = child._shared = True
        return child


def _runs(pages: TaskPages) -> list[tuple[int, int]]:
    """What is here and what is still to come, as one."""
    if pages.owed is None:
        return list(pages.runs())
    found: list[tuple[int, int]] = []
    for start, end in sorted([*pages.runs(), *pages.owed.runs()]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
