"""One shared object: its content, and what of it changed since it was read.

Nothing short of the content tells. A page table knows what was written through it, and a process may map the object,
write and unmap it, or end, between two looks; write(2) to a memfd passes all page tables by. So each page that is read
for sending leaves a digest of exactly the bytes that were read, and a look compares: what differs, or was never read,
is to be sent.

The frozen window pays for a look at everything, however little changed: so it is quick (digest.c, several threads).
Where nobody can shrink the object it is read in place. Elsewhere it is copied first: touching a page beyond the end of
a file is deadly (SIGBUS), reading there isn't.

A look never makes pages: holes are left out (SEEK_DATA), and are holes at the destination.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.errors import NotFound, from_os_error
from runtime.holes import data_ranges
from runtime.pagesource.read import Buffer, Place, joined
from runtime.shared.digest import DIGEST, Digests
from runtime.shared.find import ANONYMOUS, SharedObject, device
from runtime.tracking.ranges import Range, merged, without

PAGE = 4096
PIECE = 4 << 20
"""Bytes that are looked at in one go; digests are kept for as many pages together."""
_THREADS = min(4, os.cpu_count() or 1)
_MAP_NORESERVE = 0x4000
_F_GET_SEALS = 1034
_F_SEAL_SEAL, _F_SEAL_SHRINK = 0x1, 0x2

Read = Callable[[int, int], memoryview]


class Followed:
    """Use as a context manager, or close(). Offsets in it are what addresses are in a task."""

    def __init__(self, found: SharedObject, programs: Path) -> None:
        """Raises NotFound when it has gone, or its place is another's now. PROGRAMS: where what we compile lies."""
        self.inode = found.inode
        self.name = found.name
        self.target = f"shared memory {found.name!r}"
        """What messages call it."""
        self._digests = Digests(programs)
        self._last = False
        self._known: dict[int, bytearray] = {}
        """By offset // PIECE: a digest for each page that was read, zeros for the others. An object may be sparse."""
        try:
            # A mark in its times would be seen.
            self._fd = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
        except OSError as error:
            raise NotFound(doing="opening", target=self.target, why=str(error)) from error
        status = os.fstat(self._fd)
        if (status.st_dev, status.st_ino) != (device(), found.inode):
            os.close(self._fd)
            raise NotFound(doing="opening", target=self.target, why="it has gone")

    def __enter__(self) -> Followed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    @property
    def _seals(self) -> int:
        return fcntl.fcntl(self._fd, _F_GET_SEALS)

    @property
    def sealable(self) -> bool:
        """Whether it was made so that it may be sealed (memfd_create(2), MFD_ALLOW_SEALING)."""
        return self._seals != _F_SEAL_SEAL

    # ---- what changed

    def changed(self, *, last: bool = False) -> tuple[list[Range], list[Range]]:
        """What differs from what was read, or never was; and what was read with something in it and is a hole now.

        The second is forgotten. Exact if no process that has it can run. LAST: nobody asks again, so that what is read
        from now on isn't digested. Raises RuntimeFault.
        """
        self._last = last
        size = -(-os.fstat(self._fd).st_size // PAGE) * PAGE
        try:
            # Ends and beginnings are those of pages, but for the object's own end.
            data = [
                (start, -(-end // PAGE) * PAGE) for start, end in data_ranges(self._fd, 0, size)
            ]
        except OSError as error:
            raise from_os_error(error, doing="looking at", target=self.target) from error
        gone = self._holes(data)
        pieces = [piece for start, end in data for piece in _cut(start, end)]
        return self._all(
            pieces, self._in_place(size) if pieces and self._stays() else self._copy
        ), gone

    def _in_place(self, size: int) -> Read:
        try:
            whole = mmap.mmap(self._fd, size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE)
        except OSError:  # larger than what there is of addresses
            return self._copy
        view = memoryview(whole)
        return lambda start, end: view[start:end]

    def _stays(self) -> bool:
        """Whether it can't become shorter: nobody has a descriptor of it, or it is sealed."""
        kept = self.name == ANONYMOUS or bool(self._seals & _F_SEAL_SHRINK)
        return kept and not os.fstat(self._fd).st_size % PAGE

    def _all(self, pieces: Sequence[Range], read: Read) -> list[Range]:
        def look(piece: Range) -> list[Range]:
            return self._differing(piece[0], read(*piece))

        if len(pieces) < 2:
            return [one for piece in pieces for one in look(piece)]
        with ThreadPoolExecutor(_THREADS, "shared memory") as threads:
            return joined(one for part in threads.map(look, pieces) for one in part)

    def _differing(self, start: int, data: memoryview, *, keep: bool = False) -> list[Range]:
        """DATA is at START, within one piece. KEEP: it was read."""
        if not data:
            return []
        known = self._known.setdefault(start // PIECE, bytearray(PIECE // PAGE * DIGEST))
        pages = self._digests.changed(data, known, start % PIECE // PAGE, keep=keep)
        return joined((start + page * PAGE, start + page * PAGE + PAGE) for page in pages)

    def _copy(self, start: int, end: int) -> memoryview:
        """What there is of it in whole pages: it may have been cut off meanwhile."""
        view = memoryview(bytearray(end - start))
        return view[: self._read(view, start)]

    def _read(self, view: memoryview, start: int) -> int:
        """Into VIEW; how many bytes there were, in whole pages: less only at the end of the object."""
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], start + done)
            except OSError as error:
                raise from_os_error(error, doing="reading", target=self.target) from error
            if not count:
                break
            done += count
        rest = -done % PAGE  # its end need not be the end of a page
        view[done : done + rest] = bytes(rest)
        return done + rest

    # ---- what is known

    def _holes(self, data: list[Range]) -> list[Range]:
        """What is known of pages outside DATA is forgotten; where it was something."""
        known = merged((number * PIECE, (number + 1) * PIECE) for number in self._known)
        parts = (part for start, end in without(known, data) for part in _cut(start, end))
        return joined(part for part in parts if self._forget(*part))

    def _forget(self, start: int, end: int) -> bool:
        """Of pages within one piece; whether anything was known."""
        known = self._known.get(start // PIECE)
        if known is None:
            return False
        first, count = start % PIECE // PAGE, (end - start) // PAGE
        part = slice(first * DIGEST, (first + count) * DIGEST)
        something = known[part] != bytes(count * DIGEST)
        if end - start == PIECE:
            del self._known[start // PIECE]
        elif something:
            known[part] = bytes(count * DIGEST)
        return something

    # ---- for a sender

    def read(
        self, batch: Sequence[Range], buffer: Buffer | Place
    ) -> tuple[list[Range], list[Range]]:
        """Read BATCH into the buffer's beginning, without gaps: what was read, and what is beyond the end by now."""
        read: list[Range] = []
        gone: list[Range] = []
        at = 0
        for start, end in batch:
            view = buffer.view[at : at + end - start]
            done = self._read(view, start)
            for first, last in _cut(start, start + done) if not self._last else ():
                self._differing(first, view[first - start : last - start], keep=True)
            for first, last in _cut(start + done, end):
                self._forget(first, last)
            if done:
                read.append((start, start + done))
            if done < end - start:
                gone.append((start + done, end))
            at += done
        return read, gone


def _cut(start: int, end: int) -> Iterator[Range]:
    """The range by pieces."""
    while start < end:
        until = min(start - start % PIECE + PIECE, end)
        yield start, until
        start = until
