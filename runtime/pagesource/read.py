"""Reading pages of another process, as many ranges at a time as a system call takes.

process_vm_readv(2) is the quickest, but it pins what it reads, and a page that processes have in common since they
forked is copied for that (gup_must_unshare in the kernel's mm/gup.c): reading a family of processes would take as much
memory as if none had shared anything. /proc/PID/mem doesn't pin. So where pages aren't one process's own they are read
from there.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from runtime.errors import NotFound, from_os_error
from runtime.memory_calls import IOV_MAX, process_vm_readv

PAGE = 4096
Range = tuple[int, int]
"""[start, end): addresses, both multiples of PAGE."""

_SHORT = 16 * PAGE
"""A range that isn't longer may be copied: asking would take longer than reading it."""
_ENTRY = 8
_OWN = bytes(1 if high & 0x81 == 0x81 else 0 for high in range(256))
"""Of the highest byte of an entry in /proc/PID/pagemap: present (bit 63), and mapped by one process only (bit 56)."""


class Place(NamedTuple):
    """Memory of ours that pages are read into."""

    address: int
    view: memoryview


class Buffer:
    """Page-aligned memory of SIZE bytes that a batch is read into. ready: it costs no page faults when it is used."""

    def __init__(self, size: int, *, ready: bool = False) -> None:
        self.size = size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (mmap.MAP_POPULATE if ready else 0)
        self._map = mmap.mmap(-1, size, flags=flags)
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def place(self, at: int, size: int) -> Place:
        """A part of it; it must outlive that."""
        return Place(self.address + at, self.view[at : at + size])


def batches(runs: Iterable[Range], size: int) -> Iterator[list[Range]]:
    """RUNS cut into lists of at most SIZE bytes and IOV_MAX ranges each, in order."""
    batch: list[Range] = []
    room = size
    for start, end in runs:
        while start < end:
            take = min(end - start, room)
            batch.append((start, start + take))
            start += take
            room -= take
            if not room or len(batch) == IOV_MAX:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


class PageReader(Protocol):
    """What pages are read from: a task's memory (TaskReader), or what tasks share (runtime/shared/follow.py)."""

    @property
    def target(self) -> str:
        """What messages call it."""

    def read(
        self, batch: Sequence[Range], buffer: Buffer | Place
    ) -> tuple[list[Range], list[Range]]:
        """As TaskReader.read."""


class TaskReader:
    """The memory of process PID (host's id), running or not. Use as a context manager.

    Reading needs CAP_SYS_PTRACE over the task.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.target = f"process {pid}"
        self._memory = self._open("mem")

    def __enter__(self) -> TaskReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)

    def _open(self, name: str) -> int:
        try:
            return os.open(f"/proc/{self.pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise from_os_error(
                error, doing="reading the memory of", target=f"process {self.pid}"
            ) from error

    def read(
        self, batch: Sequence[Range], buffer: Buffer | Place
    ) -> tuple[list[Range], list[Range]]:
        """Read BATCH (see batches()) into the buffer's beginning, without gaps.

        Returns what was read, and what could not be because it isn't mapped any more. Raises NotFound when the process
        has gone.
        """
        if not self._is_own(batch):
            return self._gently(batch, buffer)
        try:
            done = process_vm_readv(self.pid, buffer.address, batch)
        except OSError as error:
            if error.errno == errno.ESRCH:
                raise self._gone() from error
            if error.errno != errno.EFAULT:
                raise from_os_error(
                    error, doing="reading the memory of", target=f"process {self.pid}"
                ) from error
            done = 0
        if done == sum(end - start for start, end in batch):
            return list(batch), []
        return self._carefully(batch, buffer, done - done % PAGE)

    def _is_own(self, batch: Sequence[Range]) -> bool:
        """Whether all its pages are there, and mapped by this process only."""
        long = [(start, end) for start, end in batch if end - start > _SHORT]
        if not long:
            return True
        pagemap = self._open("pagemap")
        try:
            for start, end in long:
                size, at = (end - start) // PAGE * _ENTRY, start // PAGE * _ENTRY
                entries = os.pread(pagemap, size, at)
                if b"\0" in entries[_ENTRY - 1 :: _ENTRY].translate(_OWN):
                    return False
        finally:
            os.close(pagemap)
        return True

    def _renew(self) -> None:
        """An exec gives a process another memory, of which the old descriptor knows nothing."""
        os.close(self._memory)
        self._memory = -1
        self._memory = self._open("mem")

    def _gently(
        self, batch: Sequence[Range], buffer: Buffer | Place
    ) -> tuple[list[Range], list[Range]]:
        """Without pinning; as read()."""
        self._renew()
        done = 0
        for start, end in batch:
            try:
                got = os.preadv(self._memory, [buffer.view[done : done + end - start]], start)
            except OSError:
                got = 0
            done += got
            if got < end - start:
                return self._carefully(batch, buffer, done - done % PAGE)
        return list(batch), []

    def _carefully(
        self, batch: Sequence[Range], buffer: Buffer | Place, done: int
    ) -> tuple[list[Range], list[Range]]:
        """After DONE bytes came a page that isn't there, or that may not be read (PROT_NONE), which mem(5) can."""
        read: list[Range] = []
        gone: list[Range] = []
        at = 0
        mapped = self._mapped()
        self._renew()
        for start, end in batch:
            size = end - start
            if done >= size:
                read.append((start, end))
                done -= size
                at += size
                continue
            if done:
                read.append((start, start + done))
                at += done
                start += done
                done = 0
            for piece_start, piece_end, is_there in _split(start, end, mapped):
                if not is_there:
                    gone.append((piece_start, piece_end))
                    continue
                for page in range(piece_start, piece_end, PAGE):
                    if self._page(page, buffer, at):
                        read.append((page, page + PAGE))
                        at += PAGE
                    else:
                        gone.append((page, page + PAGE))
        return joined(read), joined(gone)

    def _page(self, page: int, buffer: Buffer | Place, at: int) -> bool:
        try:
            return os.preadv(self._memory, [buffer.view[at : at + PAGE]], page) == PAGE
        except OSError:
            return False

    def _mapped(self) -> list[Range]:
        try:
            with open(f"/proc/{self.pid}/maps", "rb") as file:
                lines = file.read().splitlines()
        except (FileNotFoundError, ProcessLookupError) as error:
            raise self._gone() from error
        found = []
        for line in lines:
            start, _, end = line.split(b" ", 1)[0].partition(b"-")
            found.append((int(start, 16), int(end, 16)))
        return joined(found)

    def _gone(self) -> NotFound:
        return NotFound(
            doing="reading the memory of", target=f"process {self.pid}", why="it has ended"
        )


def _split(start: int, end: int, mapped: Sequence[Range]) -> Iterator[tuple[int, int, bool]]:
    """The pieces of a range that are mapped, and those that aren't."""
    at = start
    for low, high in mapped:
        if high <= at:
            continue
        if low >= end:
            break
        if low > at:
            yield at, low, False
        yield max(at, low), min(end, high), True
        at = min(end, high)
    if at < end:
        yield at, end, False


def joined(ranges: Iterable[Range]) -> list[Range]:
    """RANGES, in their order, with those that touch made one."""
    out: list[Range] = []
    for start, end in ranges:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out
