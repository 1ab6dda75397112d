"""What happened to the pager so far, in memory that keeper and worker share.

A worker that starts applies all records and has the state of the one that died. A record is begun, filled, and counted
by its kind, which is written last. An event of a userfaultfd can be read only once, so it is read right into the next
record: whatever moment the worker dies in, the event is either still in the kernel or already here.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct

TYPE_CHECKING = False  # importing typing costs the pager milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterator

_SIZE = 8 << 20
"""Bytes; touched as far as used. An event is 40 bytes: more than 200000 of them."""
_RECORD = struct.Struct("=II32s")
_KIND = struct.Struct("=I")
_DATA = struct.Struct("=q24x")
_EMPTY = bytes(32)


class Kind(enum.IntEnum):
    """fd, and what else a record has."""

    PAGES = 1  # a memfd; task
    CONNECTED = 2  # CRIU's connection
    TASK = 3  # a userfaultfd; task
    COMPLETE = 4  # all pages are in the memfds
    FILL = 5  # all memory is registered
    FINISHED = 6  # CRIU has no more to say
    EVENT = 7  # a userfaultfd; its message
    ORPHANED = 8  # the starter has gone
    OWED = 9  # a memfd that says which pages are still to come; task; comes before its PAGES
    UPSTREAM = 10  # the connection of whoever fetches these


class Full(Exception):
    """More events than a journal takes."""


class Journal:
    """Made before the keeper's first fork."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _SIZE)
        self._view = memoryview(self._map)
        self._next = 0

    def add(self, kind: Kind, fd: int = 0, number: int = 0) -> None:
        """Raises Full."""
        self._begin(fd)
        _DATA.pack_into(self._view, self._next + 8, number)
        self._count(kind)

    def read_event(self, fd: int) -> bytes | None:
        """The next message of userfaultfd FD, to be kept or not; None at its end. Raises BlockingIOError, OSError."""
        self._begin(fd)
        place = self._view[self._next + 8 : self._next + 40]
        place[:] = _EMPTY
        if os.readv(fd, [place]) != 32:
            return None
        return bytes(place)

    def keep_event(self) -> None:
        """The message just read changes the state: it becomes a record."""
        self._count(Kind.EVENT)

    def replay(self) -> Iterator[tuple[Kind, int, int, bytes]]:
        """Kind, descriptor, number, message of all records; a reading position behind the last. For a new worker."""
        self._next = 0
        while self._next + _RECORD.size <= _SIZE:
            kind, fd, data = _RECORD.unpack_from(self._view, self._next)
            if not kind:
                if data == _EMPTY or not fd:
                    return
                # Read by the one that died, which had no time to count it. If it was a fault, whoever waits is woken.
                kind = Kind.EVENT
                _KIND.pack_into(self._view, self._next, kind)
            yield Kind(kind), fd, _DATA.unpack(data)[0], data
            self._next += _RECORD.size

    def _begin(self, fd: int) -> None:
        if self._next + _RECORD.size > _SIZE:
            raise Full
        _RECORD.pack_into(self._view, self._next, 0, 0, _EMPTY)
        _KIND.pack_into(self._view, self._next + 4, fd)

    def _count(self, kind: Kind) -> None:
        _KIND.pack_into(self._view, self._next, kind)
        self._next += _RECORD.size
