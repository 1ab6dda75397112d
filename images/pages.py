"""Page maps: which pages of an address space (or a shared memory object) were dumped, and where.

A ``pagemap-ID.img`` names its ``pages-N.img`` and lists runs of pages in rising order of address.
Runs with PRESENT have their bytes there, one run after the other without gaps; LAZY ones are to be
fetched from a page server; PARENT ones lie in the images of an earlier dump.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from images.errors import Corrupt, Truncated
from images.moving import os_fault

PAGE = 4096
PARENT, LAZY, PRESENT = 1, 2, 4
"""Flags of a run (CRIU, criu/include/pagemap.h)."""

_MAGIC_COMMON = 0x54564319
_MAGIC_PAGEMAP = 0x56084025
_HEAD = struct.Struct("<II")
_SIZE = struct.Struct("<i")
_ADDRESS_END = 1 << 64


@dataclass(frozen=True, slots=True)
class PageRun:
    """pages pages from address on; flags as above."""

    address: int
    pages: int
    flags: int

    @property
    def end(self) -> int:
        return self.address + self.pages * PAGE

    @property
    def state(self) -> int:
        """Where the bytes are: PRESENT, LAZY, PARENT, or 0 for nowhere (they are zeros).

        CRIU marks everything that could be fetched later as LAZY, also where it is PRESENT.
        """
        return next((flag for flag in (PRESENT, PARENT, LAZY) if self.flags & flag), 0)


@dataclass(frozen=True, slots=True)
class PageMap:
    """pages_id: the N of pages-N.img."""

    pages_id: int
    runs: tuple[PageRun, ...]

    @property
    def pages_file(self) -> str:
        return f"pages-{self.pages_id}.img"

    def bytes_of(self, state: int) -> int:
        """Bytes of all runs in that state (see PageRun.state)."""
        return sum(run.pages for run in self.runs if run.state == state) * PAGE

    def bytes_within(self, start: int, end: int, state: int) -> int:
        """Bytes between two addresses in runs of that state."""
        at = max(0, bisect_right(self.runs, start, key=lambda run: run.address) - 1)
        total = 0
        for run in self.runs[at:]:
            if run.address >= end:
                break
            if run.state == state:
                total += max(0, min(run.end, end) - max(run.address, start))
        return total


def read_page_map(directory: str, name: str) -> PageMap:
    """A page map, and the size of its page data compared (which isn't read).

    Raises Corrupt naming the file.
    """
    try:
        with open(os.path.join(directory, name), "rb") as file:
            page_map = parse_page_map(file.read(), name)
        needed = page_map.bytes_of(PRESENT)
        found = os.stat(os.path.join(directory, page_map.pages_file)).st_size if needed else 0
    except FileNotFoundError as error:
        missing = os.path.basename(str(error.filename))
        raise Corrupt(doing="reading", target=missing, why="it is missing") from error
    except OSError as error:
        raise os_fault(error, doing="reading", target=name) from error
    if found < needed:
        raise Truncated(
            doing="reading",
            target=page_map.pages_file,
            why=f"it has {found} bytes, {name} speaks of {needed}",
        )
    return page_map


def parse_page_map(data: bytes, name: str) -> PageMap:
    """A pagemap image. Raises Corrupt naming the file.

    A large container has millions of runs, for which pycriu's dictionaries are too slow: protobuf's
    own classes are used.
    """
    from google.protobuf.message import DecodeError
    from pycriu.images import pb

    if len(data) < _HEAD.size:
        raise Truncated(doing="reading", target=name, why="its end is missing")
    if _HEAD.unpack_from(data) != (_MAGIC_COMMON, _MAGIC_PAGEMAP):
        raise Corrupt(doing="reading", target=name, why="it is no page map")
    view = memoryview(data)
    at = _HEAD.size
    head = pb.pagemap_head()
    entry = pb.pagemap_entry()
    runs: list[PageRun] = []
    first = True
    last_end = 0
    try:
        while at < len(data):
            (size,) = _SIZE.unpack_from(data, at)
            at += _SIZE.size
            if size < 0 or size > len(data) - at:
                raise Truncated(doing="reading", target=name, why="its end is missing")
            message = view[at : at + size]
            at += size
            if first:
                head.ParseFromString(message)
                first = False
                continue
            entry.ParseFromString(message)
            run = PageRun(entry.vaddr, _pages(entry), _flags(entry))
            if run.address % PAGE or run.address < last_end or run.end > _ADDRESS_END:
                raise Corrupt(doing="reading", target=name, why="its addresses are not in order")
            last_end = run.end
            runs.append(run)
    except (DecodeError, struct.error) as error:
        raise Corrupt(doing="reading", target=name, why="unreadable") from error
    if first:
        raise Truncated(doing="reading", target=name, why="it has no head")
    return PageMap(head.pages_id, tuple(runs))


def build_page_map(pages_id: int, runs: Iterable[PageRun]) -> bytes:
    """A pagemap image for a restore, to be read by the CRIU that pycriu belongs to."""
    from pycriu.images import pb

    wide = "compat_nr_pages" in pb.pagemap_entry.DESCRIPTOR.fields_by_name
    out = bytearray(_HEAD.pack(_MAGIC_COMMON, _MAGIC_PAGEMAP))
    out += _counted(pb.pagemap_head(pages_id=pages_id).SerializeToString())
    for run in runs:
        entry = pb.pagemap_entry(vaddr=run.address, nr_pages=run.pages, flags=run.flags)
        if wide:
            entry.compat_nr_pages = 0  # required; CRIU 4.2 writes 0 as well
        out += _counted(entry.SerializeToString())
    return bytes(out)


def _counted(message: bytes) -> bytes:
    return _SIZE.pack(len(message)) + message


def _pages(entry: Any) -> int:
    """Since CRIU 4.2 the count is 64 bits wide and in a field of its own."""
    return int(entry.nr_pages or getattr(entry, "compat_nr_pages", 0))


def _flags(entry: Any) -> int:
    """Old images have a single flag in a field of its own and are present otherwise."""
    if entry.HasField("flags"):
        return int(entry.flags)
    return PARENT if entry.in_parent else PRESENT
