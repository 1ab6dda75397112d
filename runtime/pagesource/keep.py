"""Pages of tasks kept in a file of this host: a sink as send.py is one, for a checkpoint of a container that runs on.

Rounds write into the file. In the frozen window nobody waits for a disk: from hold() on pages are only read, into
memory that prepare() made ready, and what to do with them is noted; release() does it, when the tasks run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from runtime.errors import SystemFault
from runtime.pagecache.file import PageFile
from runtime.pagesource import wire
from runtime.pagesource.condense import Condenser
from runtime.pagesource.read import Buffer, PageReader, Place, Range, batches, joined
from runtime.pagesource.sink import Took
from runtime.pagesource.wire import PAGE

HELD_LIMIT = 256 << 20
"""Bytes of memory for the last pages; what is more goes into the file."""
_ROOM = 16 << 20
_LEAST = 4 << 20


class PageKeeper:
    """DIRECTORY: where the file lies. Use as a context manager, from one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self.file = PageFile(directory)
        self._buffer = Buffer(wire.MAX_PAYLOAD)
        self._condenser = Condenser()
        self._notes: list[Callable[[], None]] | None = None
        self._rooms: list[Buffer] = []
        self._used = 0
        self._held = 0
        self._aborted = False
        self.written = 0

    def __enter__(self) -> PageKeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Fine to call twice."""
        self._notes, self._rooms = None, []
        self.file.close()

    def abort(self) -> None:
        self._aborted = True

    # ---- taking pages: see sink.py

    def send(
        self,
        task: int,
        reader: PageReader,
        runs: Iterable[Range],
        *,
        quick: bool = False,
        took: Took | None = None,
    ) -> int:
        pages = 0
        for batch in batches(runs, wire.MAX_PAYLOAD):
            if self._aborted:
                raise SystemFault(doing="keeping", target="pages", why="it was given up")
            place = self._room(sum(end - start for start, end in batch))
            read, gone = reader.read(batch, place or self._buffer)
            if took is not None:
                took(read, (place or self._buffer).view)
            size = sum(end - start for start, end in read)
            if place is None or self._notes is None:
                self._write(task, read, self._buffer.view)
            else:
                self._notes.append(partial(self._write, task, read, place.view[:size]))
            if gone:
                self.gone(task, gone)
            pages += size // PAGE
        self.written += pages * PAGE
        return pages

    def shared(self, number: int, shared: wire.Shared) -> None:
        """What else there is to know of it CRIU's images say."""

    def gone(self, task: int, runs: Sequence[Range]) -> None:
        if self._notes is not None:
            self._notes.append(partial(self.gone, task, runs))
            return
        for start, end in runs:
            self.file.forget(task, start, end)

    def ended(self, task: int) -> None:
        if self._notes is not None:
            self._notes.append(partial(self.ended, task))
            return
        self.file.drop(task)

    def mark(self) -> None:
        """There is no other end that would compare."""

    def flush(self) -> None:
        """Nothing is on its way."""

    # ---- the frozen window

    def prepare(self, expected: int) -> None:
        """Make memory ready for EXPECTED bytes; that takes time in which more is written."""
        size = min(max(2 * expected, _LEAST), HELD_LIMIT)
        self._rooms = [Buffer(size, ready=True)]
        self._held, self._used = size, 0

    def hold(self) -> None:
        """After prepare(): the window is about to open."""
        self._notes = []

    def release(self) -> None:
        """The window is over: into the file with what it brought."""
        notes, self._notes = self._notes or [], None
        for do in notes:
            do()
        self._rooms = []

    def _room(self, size: int) -> Place | None:
        """Memory for SIZE bytes that need not go to the file now; None if they must."""
        if self._notes is None:
            return None
        if self._used + size > self._rooms[-1].size:
            if self._held + _ROOM > HELD_LIMIT:
                return None
            self._rooms.append(Buffer(_ROOM))
            self._held += _ROOM
            self._used = 0
        place = self._rooms[-1].place(self._used, size)
        self._used += size
        return place

    # ---- what is there

    def runs(self, task: int) -> list[Range]:
        """The pages of a task that hold something; the others are zeros.

        Of copies of files' pages, those of zeros too; and where a file system has large blocks, more.
        """
        return joined(self.file.runs(task))

    # ---- inside

    def _write(self, task: int, runs: Sequence[Range], view: memoryview) -> None:
        if wire.is_copies(task):  # a hole would be the file's page
            at = 0
            for start, end in runs:
                self.file.write(task, start, view[at : at + end - start])
                at += end - start
            return
        found = self._condenser.condense(task, runs, view, quick=True)
        for address, first, last in _pieces(runs, found.kept):
            self.file.write(task, address, view[first * PAGE : last * PAGE])
        for start, end in joined((at, at + PAGE) for at in found.zeros):
            self.file.forget(task, start, end)


def _pieces(runs: Sequence[Range], kept: Sequence[Range]) -> Iterator[tuple[int, int, int]]:
    """(address, first, last) of the pages with indices in KEPT, where RUNS say which address each index has."""
    index = at = 0
    for start, end in runs:
        stop = index + (end - start) // PAGE
        while at < len(kept) and kept[at][0] < stop:
            first, last = max(kept[at][0], index), min(kept[at][1], stop)
            if first < last:
                yield start + (first - index) * PAGE, first, last
            if kept[at][1] > stop:
                break
            at += 1
        index = stop
