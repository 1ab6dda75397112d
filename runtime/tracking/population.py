"""Which pages of a process hold something. What doesn't reads as zeros (anonymous memory) or as its file."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from runtime.tracking import pagemap
from runtime.tracking.pagemap import PAGE, Scanner
from runtime.tracking.ranges import Range, common, merged, without
from runtime.tracking.vmas import Vma

_PIECE = 1 << 30  # bytes of address space whose entries are read at once: 2 MiB of them
_OCCUPIED = pagemap.PRESENT | pagemap.SWAPPED
_HERE = pagemap.IS_PRESENT | pagemap.IS_SWAPPED
_ENTRY = 8
_CHUNK = 512 * PAGE
_NO_SOFT_DIRTY = bytes(
    value & 0x7F for value in range(256)
)  # of an entry's byte 6, as SOFT_DIRTY is bit 55
_ONLY_SWAPPED = bytes(value & 0x40 for value in range(256))  # of byte 7: bit 62


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
            found += scanner.scan(start, end, any_of=_HERE)
        except OSError:
            for at in range(start, end, _PIECE):
                until = min(at + _PIECE, end)
                found += having(pagemap.entries(fd, at, until), at, _OCCUPIED)
    return merged(found)


def copies(fd: int, ranges: Iterable[Range]) -> list[Range]:
    """Of RANGES, which are private mappings of files: pages that were written, and are no longer the file's."""
    scanner = Scanner(fd)
    found: list[Range] = []
    for start, end in ranges:
        try:
            found += scanner.scan(
                start, end, all_of=pagemap.IS_FILE, any_of=_HERE, inverted=pagemap.IS_FILE
            )
        except OSError:
            for at in range(start, end, _PIECE):
                found += own(pagemap.entries(fd, at, min(at + _PIECE, end)), at)
    return merged(found)


def held(fd: int, ranges: Iterable[Range], vmas: Iterable[Vma]) -> list[Range]:
    """Of RANGES, which lie in VMAS, what the process has for itself: of private mappings of files, its copies."""
    kinds: tuple[list[Range], list[Range]] = ([], [])
    for vma in vmas:
        kinds[vma.copied].append((vma.start, vma.end))
    rest, copied = (common(list(ranges), merged(kind)) for kind in kinds)
    return merged([*populated(fd, rest), *copies(fd, copied)])


def own(entries: array[int], start: int) -> list[Range]:
    """As having(): pages that are there, and no file's."""
    return without(having(entries, start, _OCCUPIED), having(entries, start, pagemap.OF_FILE))


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


@dataclass(frozen=True, slots=True)
class Frames:
    """Where the pages from START on are: an entry of pagemap(5) for each, of its flags only SWAPPED; 0 is nowhere."""

    start: int
    end: int
    entries: bytes

    @classmethod
    def of(cls, entries: array[int], start: int) -> Frames:
        """From ENTRIES as the kernel gives them."""
        bare = bytearray(entries.tobytes())
        for byte, table in ((6, _NO_SOFT_DIRTY), (7, _ONLY_SWAPPED)):
            bare[byte::_ENTRY] = bare[byte::_ENTRY].translate(table)
        return cls(start, start + len(entries) * PAGE, bytes(bare))

    def part(self, start: int, end: int) -> bytes:
        """The entries of [START, END)."""
        return self.entries[
            (start - self.start) // PAGE * _ENTRY : (end - self.start) // PAGE * _ENTRY
        ]


def replaced(before: list[Frames], now: list[Frames]) -> list[Range]:
    """Pages that were somewhere BEFORE and are NOW somewhere else in memory, or nowhere. Both lists are sorted.

    Neither a page that is swapped out counts, which keeps its mark if it was written, nor one that was nowhere: what
    appears there was written, or is zeros still.
    """
    found: list[Range] = []
    first = second = 0
    while first < len(before) and second < len(now):
        old, new = before[first], now[second]
        for at in range(max(old.start, new.start), end := min(old.end, new.end), _CHUNK):
            until = min(at + _CHUNK, end)
            was, is_ = old.part(at, until), new.part(at, until)
            if was != is_:  # seldom: nothing is done for each page otherwise
                pages = zip(array("Q", was), array("Q", is_), strict=True)
                found += merged(
                    (at + n * PAGE, at + (n + 1) * PAGE)
                    for n, (a, b) in enumerate(pages)
                    if a and a != b and not b & pagemap.SWAPPED
                )
        if old.end < new.end:
            first += 1
        else:
            second += 1
    return merged(found)
