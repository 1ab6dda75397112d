"""Runs of pages in, records on a lane out.

Two threads: the caller's reads pages into a buffer, leaves out what needn't travel, and compresses; a writer's hashes
and writes. A few buffers go round between them: that is all the memory, and the flow control.
"""

from __future__ import annotations

import os
import queue
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import zstandard
from blake3 import blake3

from runtime.errors import NotFound, RuntimeFault, SystemFault, TimedOut, from_os_error
from runtime.memory_calls import IOV_MAX
from runtime.pagesource import wire
from runtime.pagesource.compress import Chooser
from runtime.pagesource.condense import Condenser
from runtime.pagesource.read import Buffer, PageReader, Range, batches, joined
from runtime.pagesource.sink import Took
from runtime.pagesource.wire import PAGE, Counts, Encoding, Kind, Mark

BUFFERS = 4
LEVEL = 1
"""zstd's; 1.8 GB/s taken in on a 2-core VM. Higher levels never won against the lane."""
STALL = 60.0
"""Seconds that the lane may take no byte."""

Piece = bytes | memoryview


@dataclass(frozen=True, slots=True)
class _Record:
    """buffer: goes back to the free ones once this is written."""

    pieces: list[Piece]
    buffer: Buffer | None = None
    is_mark: bool = False


class PageSender:
    """Writes page records to FD (a pipe or socket, which it doesn't close). Use as a context manager.

    compress: allow it where it pays. digest: hash what is written, so that marks can be compared. rate: bytes per
    second that may be written at most, None for no limit; may be changed at any time. Methods are for one thread.
    """

    def __init__(
        self, fd: int, *, compress: bool = True, digest: bool = True, rate: float | None = None
    ) -> None:
        self._fd = fd
        self._was_blocking = os.get_blocking(fd)
        os.set_blocking(fd, False)  # so that a peer that stalls can't hold us
        self.rate = rate
        self._hasher = blake3() if digest else None
        self._compressor = zstandard.ZstdCompressor(level=LEVEL) if compress else None
        self._chooser = Chooser()
        self._condenser = Condenser()
        self.counts = Counts()
        self.written = 0
        """Bytes on the lane."""
        self._free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(Buffer(wire.MAX_PAYLOAD))
        self._full: queue.SimpleQueue[_Record | threading.Event | None] = queue.SimpleQueue()
        self._fault: RuntimeFault | None = None
        self._closed = False
        self._writer = threading.Thread(target=self._write_all, name="page writer", daemon=True)
        self._writer.start()

    def __enter__(self) -> PageSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the writer end after what it has; call abort() before if nobody reads any more."""
        if not self._closed:
            self._closed = True
            self._full.put(None)
            self._writer.join()
            os.set_blocking(self._fd, self._was_blocking)

    def abort(self) -> None:
        """Write nothing more."""
        if self._fault is None:
            self._fault = SystemFault(doing="sending", target="pages", why="it was given up")

    # ---- what can be sent

    def send(
        self,
        task: int,
        reader: PageReader,
        runs: Iterable[Range],
        *,
        quick: bool = False,
        whole: bool = False,
        took: Took | None = None,
    ) -> int:
        """The pages of RUNS as they are now. Returns how many there were; those not mapped any more are told as gone.

        quick: don't look for duplicates (for the frozen window, whose pages were all sent before; and when the
        destination gives pages away as they come, so that there is nothing to refer to).
        took: called with what was read, before it goes on.
        whole: the task is known to have every page of RUNS; one that can't be read is a task that ended.

        Raises NotFound when the task has ended, TimedOut or another RuntimeFault when the lane fails.
        """
        pages = 0
        for batch in batches(runs, wire.MAX_PAYLOAD):
            buffer = self._borrow()
            try:
                read, gone = reader.read(batch, buffer)
            except BaseException:
                self._free.put(buffer)
                raise
            if gone and whole:
                self._free.put(buffer)
                raise NotFound(
                    doing="reading the memory of", target=reader.target,
                    why=f"{gone[0][0]:#x} is not there any more",
                )  # fmt: skip
            if gone:
                self.gone(task, gone)
            if took is not None:
                took(read, buffer.view)
            self._send_batch(task, read, buffer, quick)
            pages += sum(end - start for start, end in read) // PAGE
        return pages

    def gone(self, task: int, runs: Sequence[Range]) -> None:
        """Pages of RUNS don't exist any more, or are left to CRIU."""
        self._condenser.forget(task, runs)
        self.counts.gone += sum(end - start for start, end in runs) // PAGE
        self._extents(Kind.GONE, task, runs)

    def owe(self, task: int, runs: Sequence[Range]) -> None:
        """Pages of RUNS will be sent later, when the receiver asks for them."""
        self._extents(Kind.OWED, task, runs)

    def ended(self, task: int) -> None:
        """The task has gone with all its pages."""
        self._condenser.forget_task(task)
        self._put(Kind.ENDED, task, 0, b"")

    def shared(self, number: int, shared: wire.Shared) -> None:
        """NUMBER, which is SHARED_FROM or more, is a shared object from now on. Before anything else is told of it."""
        data = wire.build_shared(shared)
        self._record([wire.build_head(Kind.SHARED, number, 0, len(data)) + data], None)

    def mark(self) -> None:
        """Write a mark: the receiver's until_mark() returns there."""
        self.counts.records += 1
        mark = wire.build_mark(Mark(replace(self.counts), bytes(32)))
        head = wire.build_head(Kind.MARK, 0, 0, len(mark))
        self._full.put(_Record([head, mark], is_mark=True))

    def flush(self) -> None:
        """Until everything is on the lane. Raises what went wrong with it."""
        done = threading.Event()
        self._full.put(done)
        done.wait()
        self._check()

    # ---- the caller's thread

    def _borrow(self) -> Buffer:
        self._check()
        return self._free.get()

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _send_batch(self, task: int, runs: Sequence[Range], buffer: Buffer, quick: bool) -> None:
        found = self._condenser.condense(task, runs, buffer.view, quick=quick)
        total = sum(end - start for start, end in runs) // PAGE
        self.counts.zeros += len(found.zeros)
        self.counts.same += len(found.same)
        kept = total - len(found.zeros) - len(found.same)
        self.counts.pages += kept
        if kept:
            addresses = _addresses(runs)
            sent = runs if kept == total else _runs_at(addresses, found.kept)
            self._pages(task, sent, found.kept, kept, buffer)
        else:
            self._free.put(buffer)
        if found.zeros:
            self._extents(Kind.ZEROS, task, joined((at, at + PAGE) for at in found.zeros))
        if found.same:
            every = len(found.same) == total
            same = runs if every else joined((at, at + PAGE) for at in found.same)
            numbers = wire.extents(same)
            places = wire.build_places(found.equals)
            head = wire.build_head(Kind.SAME, task, len(numbers), len(places))
            self._record([head + wire.build_extents(numbers) + places], None)

    def _pages(
        self, task: int, runs: Sequence[Range], kept: Sequence[Range], count: int, buffer: Buffer
    ) -> None:
        pieces: list[Piece] = [buffer.view[first * PAGE : last * PAGE] for first, last in kept]
        size = count * PAGE
        encoding = Encoding.PLAIN
        if self._compressor is not None and self._chooser.choose():
            plain = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            began = time.perf_counter()
            packed = self._compressor.compress(plain)
            self._chooser.compressed(size, len(packed), time.perf_counter() - began)
            if len(packed) < size:
                pieces, size, encoding = [packed], len(packed), Encoding.ZSTD
        numbers = wire.extents(runs)
        head = wire.build_head(Kind.PAGES, task, len(numbers), size, encoding)
        self._record([head + wire.build_extents(numbers), *pieces], buffer)

    def _extents(self, kind: Kind, task: int, runs: Sequence[Range]) -> None:
        numbers = wire.extents(runs)
        for at in range(0, len(numbers), wire.MAX_ENTRIES):
            part = numbers[at : at + wire.MAX_ENTRIES]
            self._put(kind, task, len(part), wire.build_extents(part))

    def _put(self, kind: Kind, task: int, entries: int, data: bytes) -> None:
        self._record([wire.build_head(kind, task, entries, 0) + data], None)

    def _record(self, pieces: list[Piece], buffer: Buffer | None) -> None:
        self._check()
        self.counts.records += 1
        self._full.put(_Record(pieces, buffer))

    # ---- the writer's thread

    def _write_all(self) -> None:
        while (item := self._full.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                if self._fault is None:
                    self._write(item.pieces, item.is_mark)
            except OSError as error:
                self._fault = from_os_error(error, doing="sending", target="pages")
            except RuntimeFault as fault:
                self._fault = fault
            finally:
                if item.buffer is not None:
                    self._free.put(item.buffer)

    def _write(self, pieces: list[Piece], is_mark: bool) -> None:
        if self._hasher is not None:
            if is_mark:
                # The mark tells the digest of everything before it.
                mark = wire.parse_mark(bytes(pieces[1]))
                pieces = [pieces[0], wire.build_mark(replace(mark, digest=self._hasher.digest()))]
            for piece in pieces:
                self._hasher.update(piece)
        began = time.perf_counter()
        size = write_pieces(self._fd, pieces, lambda: self._fault is not None)
        seconds = time.perf_counter() - began
        self.written += size
        self._chooser.sent(size, seconds)
        rate = self.rate
        if rate:
            time.sleep(max(0.0, size / rate - seconds))


def write_pieces(
    fd: int, pieces: Sequence[Piece], given_up: Callable[[], bool] = lambda: False
) -> int:
    """All of them, to a descriptor that doesn't block. Returns the bytes. Raises OSError, TimedOut.

    given_up: asked each second in which the lane takes nothing; ends the waiting.
    """
    views = [memoryview(piece) for piece in pieces if len(piece)]
    total = 0
    while views:
        try:
            done = os.writev(fd, views[:IOV_MAX])
        except BlockingIOError:
            _wait_writable(fd, given_up)
            continue
        total += done
        while views and done >= len(views[0]):
            done -= len(views[0])
            del views[0]
        if done:
            views[0] = views[0][done:]
    return total


def _wait_writable(fd: int, given_up: Callable[[], bool]) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    until = time.monotonic() + STALL
    while not poller.poll(1000):
        if given_up() or time.monotonic() > until:
            raise TimedOut(
                doing="sending", target="pages", why=f"the lane took nothing for {STALL:g} s",
                retry=True,
            )  # fmt: skip


def _addresses(runs: Sequence[Range]) -> list[int]:
    return [address for start, end in runs for address in range(start, end, PAGE)]


def _runs_at(addresses: Sequence[int], kept: Sequence[Range]) -> list[Range]:
    """The runs of the pages with these indices."""
    return joined(
        (address, address + PAGE) for first, last in kept for address in addresses[first:last]
    )


__all__ = ["PageSender", "write_pieces"]
