"""The ioctl PAGEMAP_SCAN (Linux 6.7, include/uapi/linux/fs.h) and a scan that leaves ranges out.

Imported by the guard, which starts without site-packages: standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

TYPE_CHECKING = False  # importing typing costs the guard milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAGE = 4096
PAGEMAP_SCAN = 0xC0606610
"""_IOWR('f', 16, struct pm_scan_arg)"""
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_GUARD = 1 << 8

ARG = struct.Struct("=12Q")
"""struct pm_scan_arg."""
REGION = struct.Struct("=3Q")
"""struct page_region: start, end, categories."""
WALK_END = struct.Struct("=Q")
WALK_END_AT = 32
MAX_REGIONS = 65536
"""Regions that we ask for at once; a caller who offers room for more gets what is found in several steps."""


class Scan:
    """struct pm_scan_arg, field by field."""

    __slots__ = (
        "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages",
        "category_inverted", "category_mask", "category_anyof_mask", "return_mask",
    )  # fmt: skip

    def __init__(self, raw: bytes) -> None:
        values = ARG.unpack(raw)
        self.size, self.flags, self.start, self.end, self.walk_end, self.vec = values[:6]
        self.vec_len, self.max_pages, self.category_inverted, self.category_mask = values[6:10]
        self.category_anyof_mask, self.return_mask = values[10:]

    @property
    def wants_content(self) -> bool:
        """It looks for pages that hold something. Another kind is after guard regions (MADV_GUARD_INSTALL), which CRIU
        restores itself, in our ranges too."""
        wanted = self.category_mask | self.category_anyof_mask
        return bool(wanted & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED)) and not (
            self.category_mask & PAGE_IS_GUARD
        )


class Result:
    """What the ioctl gives: regions (packed page_region), where it stopped."""

    __slots__ = ("regions", "walk_end")

    def __init__(self, regions: bytes, walk_end: int) -> None:
        self.regions = regions
        self.walk_end = walk_end

    @property
    def count(self) -> int:
        return len(self.regions) // REGION.size

    def pages(self) -> int:
        return sum((end - start) // PAGE for start, end, _ in REGION.iter_unpack(self.regions))


class Scanner:
    """The real ioctl on an open /proc/PID/pagemap."""

    def __init__(self) -> None:
        self._vec = (ctypes.c_uint64 * (3 * 1024))()

    def __call__(
        self, pagemap: int, scan: Scan, start: int, end: int, vec_len: int, max_pages: int
    ) -> Result:
        """Like SCAN, but from START to END with these limits. Raises OSError."""
        vec_len = min(vec_len, MAX_REGIONS)
        if 3 * vec_len > len(self._vec):
            self._vec = (ctypes.c_uint64 * (3 * vec_len))()
        arg = bytearray(
            ARG.pack(
                ARG.size,
                scan.flags,
                start,
                end,
                0,
                # No vector at all is a mode of its own: nothing is reported, pages may still be write-protected.
                ctypes.addressof(self._vec) if scan.vec else 0,
                vec_len if scan.vec else 0,
                max_pages,
                scan.category_inverted,
                scan.category_mask,
                scan.category_anyof_mask,
                scan.return_mask,
            )
        )
        count = fcntl.ioctl(pagemap, PAGEMAP_SCAN, arg)
        (walk_end,) = WALK_END.unpack_from(arg, WALK_END_AT)
        return Result(ctypes.string_at(self._vec, count * REGION.size), walk_end)


def scan_around(
    scan: Scan,
    hidden: Sequence[tuple[int, int]],
    really: Callable[[int, int, int, int], Result],
) -> Result:
    """What SCAN would find if the HIDDEN ranges (sorted, disjoint, page-aligned) were empty.

    REALLY(start, end, vec_len, max_pages) does the ioctl. The rules are the kernel's: at most vec_len regions; at most
    max_pages pages, if that isn't 0; walk_end is where it stopped for want of room, else the end.
    """
    out: list[bytes] = []
    room, pages_left = scan.vec_len, scan.max_pages
    at = scan.start
    for start, end in [*_within(hidden, scan.start, scan.end), (scan.end, scan.end)]:
        while at < start:
            if scan.vec and (room <= 0 or (scan.max_pages and pages_left <= 0)):
                return Result(b"".join(out), at)
            found = really(at, start, room, pages_left)
            out.append(found.regions)
            room -= found.count
            if scan.max_pages:
                pages_left -= found.pages()
            if found.walk_end >= start:
                at = start
                break
            if found.walk_end <= at:
                return Result(b"".join(out), at)
            at = found.walk_end
            # It stopped early: no room in the vector, which may be ours, smaller than the caller's.
        at = max(at, end)
    return Result(b"".join(out), scan.end)


def _within(hidden: Sequence[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """The parts of HIDDEN between two addresses."""
    low, high = 0, len(hidden)
    while low < high:
        middle = (low + high) // 2
        if hidden[middle][1] <= start:
            low = middle + 1
        else:
            high = middle
    found = []
    for a, b in hidden[low:]:
        if a >= end:
            break
        found.append((max(a, start), min(b, end)))
    return found


def supported() -> bool:
    """Whether this kernel has PAGEMAP_SCAN."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # An empty range finds nothing, and is refused by a kernel that doesn't know the ioctl.
        raw = ARG.pack(ARG.size, 0, 0, 0, 0, 0, 0, 0, 0, PAGE_IS_PRESENT, 0, PAGE_IS_PRESENT)
        fcntl.ioctl(pagemap, PAGEMAP_SCAN, bytearray(raw))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL):
            return False
        raise
    finally:
        os.close(pagemap)
    return True
