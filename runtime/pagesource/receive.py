"""Records in, pages in a store: the other end of send.py. Nothing that arrives is trusted.

Plain pages are read from the lane to where they belong in the store, with one readv for all ranges of a record;
compressed ones are unpacked and copied there.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence

import zstandard
from blake3 import blake3

from runtime.errors import BadInput, Conflict, RuntimeFault, SystemFault, TimedOut, from_os_error
from runtime.memory_calls import IOV_MAX
from runtime.pagecache.store import PageStore
from runtime.pagesource import wire
from runtime.pagesource.send import STALL
from runtime.pagesource.wire import PAGE, Counts, Encoding, Head, Kind, Mark

_NOTHING = memoryview(bytes(PAGE))
MAX_TASKS = 1 << 15
"""Tasks of one container; each costs us a descriptor."""


class PageReceiver:
    """Reads page records from FD, which it doesn't close, into STORE. digest: as the sender has it.

    on_pages: called with a task and ranges that were owed before and have come. patience: seconds in which nothing may
    come. over: set from any thread, ends the waiting.
    """

    def __init__(
        self,
        fd: int,
        store: PageStore,
        *,
        digest: bool = True,
        on_pages: Callable[[int, list[wire.Range]], None] = lambda task, runs: None,
        patience: float = STALL,
    ) -> None:
        self.over = False
        self._patience = patience
        self._fd = fd
        self._store = store
        self._on_pages = on_pages
        self._hasher = blake3() if digest else None
        self._unpack = zstandard.ZstdDecompressor()
        self.counts = Counts()

    def until_mark(self) -> Mark:
        """Carry out records up to and including the next mark, which is compared with what came.

        Raises BadInput (no such stream), Conflict (not what was sent), SystemFault (the lane ended, no memory left),
        TimedOut. The store is then of no use.
        """
        while True:
            before = self._hasher.digest() if self._hasher is not None else bytes(32)
            head = wire.parse_head(self._read(wire.HEAD.size))
            self.counts.records += 1
            if head.kind is Kind.MARK:
                return self._mark(head, before)
            if head.kind is Kind.SHARED:
                self._share(head)
                continue
            entries = self._read(head.entries_size) if head.entries else b""
            try:
                self._carry_out(head, entries)
            except OSError as error:
                raise from_os_error(error, doing="keeping", target="pages") from error

    def _mark(self, head: Head, digest: bytes) -> Mark:
        mark = wire.parse_mark(self._read(head.payload))
        if mark.counts != self.counts or mark.digest != digest:
            raise Conflict(
                doing="receiving", target="pages",
                why=f"{self.counts} arrived, {mark.counts} were sent"
                if mark.counts != self.counts
                else "they are not those that were sent",
            )  # fmt: skip
        return mark

    def _share(self, head: Head) -> None:
        shared = wire.parse_shared(self._read(head.payload))
        if head.task < wire.SHARED_FROM or head.task in self._store:
            raise _bad(f"a shared object with the number {head.task}")
        self._require_place()
        try:
            self._store.share(head.task, shared.inode, shared.name, sealable=shared.sealable)
        except OSError as error:
            raise from_os_error(error, doing="keeping", target="pages") from error

    def _require_place(self) -> None:
        if len(self._store) >= MAX_TASKS:
            raise _bad(f"more than {MAX_TASKS} tasks")

    def _carry_out(self, head: Head, entries: bytes) -> None:
        if head.kind is Kind.ENDED:
            self._store.drop(head.task)
            return
        if head.task not in self._store:
            if head.task >= wire.SHARED_FROM:
                raise _bad(f"pages of a shared object {head.task} that wasn't told of")
            self._require_place()
        runs = wire.parse_extents(entries)
        count = sum(end - start for start, end in runs) // PAGE
        pages = self._store[head.task]
        if head.kind is Kind.OWED:
            for start, end in runs:
                pages.owe(start, end)
            return
        if head.kind is Kind.SAME:
            self._same(head, runs, count)
            return
        if head.kind is Kind.PAGES:
            self._pages(head, runs, count)
        elif head.kind is Kind.ZEROS:
            self.counts.zeros += count
            if wire.is_copies(head.task):
                self._zeros(head.task, runs)
            else:
                self._store.forget(head.task, runs)
        else:
            self.counts.gone += count
            self._store.forget(head.task, runs)
        if pages.owed is not None:
            for start, end in runs:
                pages.arrived(start, end)
            self._on_pages(head.task, runs)

    def _pages(self, head: Head, runs: Sequence[wire.Range], count: int) -> None:
        size = count * PAGE
        if size > wire.MAX_PAYLOAD or (head.encoding is Encoding.PLAIN and size != head.payload):
            raise _bad(f"{head.payload} bytes for {count} pages")
        self._require_room(size)
        self._store.expect(head.task, runs)
        pages = self._store[head.task]
        places = [view for start, end in runs for view in pages.views(start, end)]
        self.counts.pages += count
        if head.encoding is Encoding.PLAIN and pages.owed is None:
            self._read_into(places)
        else:
            self._copy_into(places, head, size)
        for start, end in runs:
            pages.hold(start, end)

    def _zeros(self, task: int, runs: Sequence[wire.Range]) -> None:
        """Where a page that isn't there would be something else."""
        for start, end in runs:
            for at in range(start, end, IOV_MAX * PAGE):
                self._write(task, [_NOTHING] * (min(end - at, IOV_MAX * PAGE) // PAGE), at)

    def _copy_into(self, places: Sequence[memoryview], head: Head, size: int) -> None:
        plain = self._read(head.payload)
        if head.encoding is not Encoding.PLAIN:
            plain = self._unpacked(plain, size)
        # What was owed may come twice, and has been given away by then: it must not be hashed where it belongs.
        at = 0
        source = memoryview(plain)
        for place in places:
            place[:] = source[at : at + len(place)]
            at += len(place)

    def _unpacked(self, packed: bytes, size: int) -> bytes:
        try:
            plain = self._unpack.decompress(packed, max_output_size=size)
        except zstandard.ZstdError as error:
            raise _bad(f"undecodable pages ({error})") from None
        if len(plain) != size:
            raise _bad(f"{len(plain)} bytes for {size // PAGE} pages")
        return plain

    def _same(self, head: Head, runs: Sequence[wire.Range], count: int) -> None:
        """One call for each range, from wherever the equals of its pages lie: there may be a million such pages."""
        places = wire.parse_places(self._read(head.payload), count)
        views: dict[wire.Place, memoryview] = {}
        for place in set(places):
            address, task = place
            if task not in self._store:
                raise _bad(f"a reference to task {task}")
            (views[place],) = self._store[task].views(address, address + PAGE)
        equals = [views[place] for place in places]
        at = 0
        for start, end in runs:
            size = (end - start) // PAGE
            for first in range(0, size, IOV_MAX):
                pages = equals[at + first : at + min(size, first + IOV_MAX)]
                self._write(head.task, pages, start + first * PAGE)
            at += size
        self.counts.same += count

    def _write(self, task: int, places: Sequence[memoryview], start: int) -> None:
        size = len(places) * PAGE
        self._require_room(size)
        self._store.expect(task, [(start, start + size)])
        pages = self._store[task]
        if os.pwritev(pages.fd, places, start) != size:
            raise SystemFault(doing="keeping", target="pages", why="no memory left")
        pages.hold(start, start + size)

    def _require_room(self, size: int) -> None:
        if not self._store.room(size):
            raise SystemFault(
                doing="keeping", target="pages", why=f"more than {self._store.limit} bytes of memory",
                hint="stop something on this host, or use --mode cold",
            )  # fmt: skip

    # ---- reading

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        self._read_into([memoryview(data)])
        return bytes(data)

    def _read_into(self, views: Sequence[memoryview]) -> None:
        left = list(views)
        while left:
            self._wait()
            try:
                done = os.readv(self._fd, left[:IOV_MAX])
            except BlockingIOError:
                continue
            except OSError as error:
                raise from_os_error(error, doing="receiving", target="pages") from error
            if not done:
                raise SystemFault(
                    doing="receiving", target="pages", why="the lane ended", retry=True
                )
            while left and done >= len(left[0]):
                done -= len(left[0])
                del left[0]
            if done:
                left[0] = left[0][done:]
        if self._hasher is not None:
            for view in views:
                self._hasher.update(view)

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        until = time.monotonic() + self._patience
        while not poller.poll(1000):
            if self.over or time.monotonic() > until:
                raise TimedOut(
                    doing="receiving", target="pages",
                    why=f"nothing came for {self._patience:g} s", retry=True,
                )  # fmt: skip


def _bad(what: str) -> RuntimeFault:
    return BadInput(doing="receiving", target="pages", why=what)
