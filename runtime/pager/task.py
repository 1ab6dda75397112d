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
        self._shared = False
        self._cursor = 0
        self._most = CHUNK

    def begin(self, pages: TaskPages | None) -> None:
        """All its pages are in the cache now."""
        self.pages = pages
        self.pending = Pending(pages.runs() if pages is not None else ())

    @property
    def done(self) -> bool:
        return self.ended or not self.pending

    def fault(self, address: int) -> None:
        """Place the page at ADDRESS and some behind it."""
        address &= ~(PAGE - 1)
        while not self.ended:
            found = self.pending.find(address)
            if found is None:
                if not self._zero(address):
                    self.again.append(address)
                return
            placed = self.placed
            if not self._place(*found, FAULT):
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
            uffd.wake(
                self.fd, address, PAGE
            )  # placed, or unmapped, since it was asked for: look again
        return True

    def fill(self) -> bool:
        """Place one chunk of what is missing. False: not now, an event has to be read first."""
        found = self.pending.first(self._cursor)
        return found is None or self._place(*found, CHUNK)

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
        self._cursor = end
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

    def forked(self, fd: int) -> Task:
        """The child's: what was placed before is in its memory as well; the rest both need."""
        child = Task(self.number, fd)
        child.pages, child.pending = self.pages, self.pending.copy()
        self._shared = child._shared = True
        return child
