"""Which pages of a process hold something. What doesn't reads as zeros (anonymous memory) or as its file."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterable, Iterator

from runtime.tracking import pagemap
from runtime.tracking.pagemap import PAGE, Scanner
from runtime.tracking.ranges import Range, merged

_PIECE = 1 << 30  # bytes of address space whose entries are read at once: 2 MiB of them
_OCCUPIED = pagemap.PRESENT | pagemap.SWAPPED
_ENTRY = 8


@contextlib.contextmanager
def opened(pid: int) -> Iterator[int]:
    """A descriptor of /proc/PID/pagemap. Raises FileNotFoundError, ProcessLookupError."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def populated(fd: int, ranges: Iterable[Range]) -> list[Range]:
    """Of RANGES, what is in memory or swapped out, by PAGEMAP_SCAN where there is one. FD: see `opened`."""
    scanner = Scanner(fd)
    found: list[Range] = []
    for start, end in ranges:
        try:
            found += scanner.scan(start, end, any_of=pagemap.IS_PRESENT | pagemap.IS_SWAPPED)
        except OSError:
            for at in range(start, end, _PIECE):
                until = min(at + _PIECE, end)
                found += having(pagemap.entries(fd, at, until), at, _OCCUPIED)
    return merged(found)


def having(entries: array[int], start: int, bits: int) -> list[Range]:
    """The ranges of pages, the first of them at START, whose entries have one of BITS, all of which are in one byte.

    Nothing here is done for each page in Python, of which a GiB has 262,144.
    """
    byte = (bits.bit_length() - 1) // 8
    wanted = bits >> byte * 8
    table = bytes(1 if value & wanted else 0 for value in range(256))
    marks = entries.tobytes()[byte::_ENTRY].translate(table)
    found: list[Range] = []
    begin = marks.find(1)
    while begin >= 0:
        end = marks.find(0, begin)
        end = end if end >= 0 else len(marks)
        found.append((start + begin * PAGE, start + end * PAGE))
        begin = marks.find(1, end)
    return found
