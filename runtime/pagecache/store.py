"""Memory of tasks, kept in memfds in which a page's offset is its address.

One sparse memfd per task. What follows from "offset is address": there is no table of ranges to keep, whatever the
task maps or unmaps between two rounds; which pages there are is asked from the file (SEEK_DATA), so that this too is
kept in one place only; a page that isn't there is a page of zeros, and a page that became zero is made a hole. The file
can be handed to another process (the pager), and is not lost with this one.

Pages that are still to come (lazy moves) are noted in a second sparse memfd, a byte a page: see Owed. Content comes
before the note is taken away, so who sees no note may take the page.

What tasks share with each other (anonymous shared memory, memfds) is kept in the same way, with offsets in place of
addresses, but in a memfd that is made as the restored tasks are to have it: it becomes theirs, and nothing is copied.

Bytes get into it through windows of 1 GiB, mapped when first needed: a record's pages are read from the lane directly
to where they belong. A window is address space only.
"""

from __future__ import annotations

import ctypes
import mmap
import os

from runtime.holes import data_ranges, punch_hole
from runtime.pager.pending import Pending

TYPE_CHECKING = False  # importing typing costs the pager milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.pagecache.charge import Charger

PAGE = 4096
WINDOW = 1 << 30
ADDRESS_END = 1 << 56
"""User addresses of x86-64 and aarch64, five-level page tables included, end here."""
_DIGEST_STEP = 1 << 20


_OWED = b"\1"
_LOOK = 1 << 16
"""Notes looked at with one call: those of 256 MiB."""


class Owed:
    """Pages of a task that are still to come. fd: a memfd, owned; or one received from another process.

    All methods are exact whichever processes hold the memfd, and whichever of them dies in between.
    """

    def __init__(self, fd: int | None = None) -> None:
        if fd is None:
            fd = os.memfd_create("ckpt-owed", os.MFD_CLOEXEC)
            os.ftruncate(fd, ADDRESS_END // PAGE)
        self.fd = fd

    def add(self, start: int, end: int) -> None:
        self._write(start, end, _OWED)

    def remove(self, start: int, end: int) -> None:
        """They are here."""
        self._write(start, end, b"\0")

    def _write(self, start: int, end: int, note: bytes) -> None:
        at, last = start // PAGE, end // PAGE
        while at < last:
            at += os.pwrite(self.fd, note * min(last - at, _LOOK), at)

    def first(self, start: int, end: int) -> int:
        """The first page between two addresses that is still to come; END if all are here."""
        return self._find(start, end, _OWED)

    def first_here(self, start: int, end: int) -> int:
        """The first page that is not to come any more; END if all are."""
        return self._find(start, end, b"\0")

    def _find(self, start: int, end: int, note: bytes) -> int:
        at, last = start // PAGE, end // PAGE
        while at < last:
            notes = os.pread(self.fd, min(last - at, _LOOK), at)
            found = notes.find(note)
            if found >= 0:
                return (at + found) * PAGE
            at += len(notes)
        return end

    def runs(self) -> Iterator[tuple[int, int]]:
        """The ranges that are still to come, in order."""
        for first, last in data_ranges(self.fd, 0, ADDRESS_END // PAGE):
            stop = last * PAGE
            start = self.first(first * PAGE, stop)
            while start < stop:
                end = self.first_here(start, stop)
                yield start, end
                start = self.first(end, stop)


class TaskPages:
    """The pages of one task. fd: the memfd, owned; or one received from another process.

    owed: what is still to come; None where nothing ever was. known: the populated ranges, if everybody who writes
    calls hold(); asking the file takes 15 ms per GiB, page by page.
    """

    def __init__(self, fd: int | None = None, owed: Owed | None = None) -> None:
        self.owed = owed
        self.known = Pending()
        if fd is None:
            fd = os.memfd_create("ckpt-pages", os.MFD_CLOEXEC)
            os.ftruncate(fd, ADDRESS_END)
        self.fd = fd
        self._windows: dict[int, memoryview] = {}
        self._bases: dict[int, int] = {}

    def close(self) -> None:
        """Give back the descriptor and the windows; views that are still in use keep theirs."""
        self.let_go()
        os.close(self.fd)
        if self.owed is not None:
            os.close(self.owed.fd)

    def owe(self, start: int, end: int) -> None:
        """These pages will come later."""
        if self.owed is None:
            self.owed = Owed()
        self.owed.add(start, end)

    def arrived(self, start: int, end: int) -> None:
        """These pages have come: what is to be known of them is in the memfd."""
        if self.owed is not None:
            self.owed.remove(start, end)

    def let_go(self) -> None:
        """Unmap what was mapped to get bytes into it; who still has views keeps theirs."""
        self._windows.clear()
        self._bases.clear()

    def _window(self, number: int) -> memoryview:
        view = self._windows.get(number)
        if view is None:
            mapped = mmap.mmap(self.fd, WINDOW, offset=number * WINDOW)
            # Read by address out of order as faults come: readahead has nothing to read.
            view = self._windows[number] = memoryview(mapped)
        return view

    def views(self, start: int, end: int) -> list[memoryview]:
        """The memory of that range, to be read or written in place: a view for each window that it touches.

        Raises OSError. Looking at a page that isn't there makes it be there.
        """
        out = []
        while start < end:
            number, at = divmod(start, WINDOW)
            size = min(end - start, WINDOW - at)
            out.append(self._window(number)[at : at + size])
            start += size
        return out

    def address(self, start: int) -> int:
        """Where the page at START lies in this process; contiguous up to the next multiple of WINDOW."""
        number, at = divmod(start, WINDOW)
        base = self._bases.get(number)
        if base is None:
            base = ctypes.addressof(ctypes.c_char.from_buffer(self._window(number)))
            self._bases[number] = base
        return base + at

    def forget(self, start: int, end: int) -> None:
        """Pages from START to END are zeros, or not there any more. Gives their memory back."""
        self.known.remove(start, end)
        punch_hole(self.fd, start, end - start)

    def hold(self, start: int, end: int) -> None:
        """Pages from START to END are in the memfd now."""
        if not self.holds(start, end):
            self.known.remove(start, end)
            self.known.add(start, end, 0)

    def holds(self, start: int, end: int) -> bool:
        """Whether every page from START to END is known to be there."""
        found = self.known.find(start)
        return found is not None and found[1] >= end

    def runs(self, start: int = 0, end: int = ADDRESS_END) -> Iterator[tuple[int, int]]:
        """The populated ranges between two addresses, in order."""
        return data_ranges(self.fd, start, end)

    @property
    def size(self) -> int:
        """Bytes of memory in use."""
        return os.fstat(self.fd).st_blocks * 512

    def digest(self, ranges: Sequence[tuple[int, int]], update: object) -> None:
        """Call UPDATE with all bytes of RANGES in order, holes as zeros, without populating them.

        For comparing with the same ranges of a task that is frozen.
        """
        assert callable(update)
        for start, end in ranges:
            for at in range(start, end, _DIGEST_STEP):
                update(os.pread(self.fd, min(_DIGEST_STEP, end - at), at))


class PageStore:
    """Pages of several tasks, by task id (the process id as the container sees it).

    Use as a context manager. limit: bytes of memory that all tasks together may have (see room()).
    """

    def __init__(self, *, limit: int | None = None, charger: Charger | None = None) -> None:
        """CHARGER: allocates what is shared, for the cgroup that is to have it."""
        self.limit = limit
        self._charger = charger
        self._tasks: dict[int, TaskPages] = {}
        self.shared: dict[int, int] = {}
        """Those numbers that are shared objects, and the inode that each has at the source."""
        self._added = 0
        self._known = 0

    def __enter__(self) -> PageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for pages in self._tasks.values():
            pages.close()
        self._tasks.clear()
        self.shared.clear()

    def __iter__(self) -> Iterator[int]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task: int) -> bool:
        return task in self._tasks

    def __getitem__(self, task: int) -> TaskPages:
        """The task's pages; an empty set is made for a new one."""
        pages = self._tasks.get(task)
        if pages is None:
            pages = self._tasks[task] = TaskPages()
        return pages

    def share(self, number: int, inode: int, name: bytes, *, sealable: bool) -> None:
        """A place for the shared object NUMBER: a memfd of that NAME. Raises OSError."""
        flags = os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if sealable else 0)
        fd = os.memfd_create(os.fsdecode(name), flags)
        os.ftruncate(fd, ADDRESS_END)
        self.adopt(number, TaskPages(fd))
        self.shared[number] = inode

    def expect(self, task: int, runs: Sequence[tuple[int, int]]) -> None:
        """These pages are about to be written. Raises RuntimeFault."""
        if self._charger is not None and task in self.shared:
            pages = self[task]
            new = [run for run in runs if not pages.holds(*run)]
            self._charger.allocate(pages.fd, new)
            for start, end in new:
                pages.hold(start, end)

    def forget(self, task: int, runs: Sequence[tuple[int, int]]) -> None:
        """These pages are zeros, or not there any more."""
        pages = self[task]
        for start, end in runs:
            pages.forget(start, end)

    def adopt(self, task: int, pages: TaskPages) -> None:
        """Pages whose memfds came from another process."""
        self.drop(task)
        self._tasks[task] = pages

    def drop(self, task: int) -> None:
        """The task has ended: give its pages back."""
        self.shared.pop(task, None)
        pages = self._tasks.pop(task, None)
        if pages is not None:
            pages.close()

    @property
    def size(self) -> int:
        """Bytes of memory in use by all tasks."""
        return sum(pages.size for pages in self._tasks.values())

    def room(self, count: int) -> bool:
        """Whether COUNT bytes more are within the limit. Asks the kernel only when that could matter."""
        if self.limit is None:
            return True
        self._added += count
        if self._known + self._added > self.limit:
            self._known, self._added = self.size, count
        return self._known + self._added <= self.limit
