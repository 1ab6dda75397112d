"""/proc/PID/pagemap: its entries, and the PAGEMAP_SCAN ioctl. Constants and thin wrappers, nothing else.

Source: Linux's Documentation/admin-guide/mm/pagemap.rst, soft-dirty.rst and include/uapi/linux/fs.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from array import array

PAGE = mmap.PAGESIZE

IS_WPALLOWED = 1 << 0
IS_WRITTEN = 1 << 1
IS_FILE = 1 << 2
IS_PRESENT = 1 << 3
IS_SWAPPED = 1 << 4
IS_PFNZERO = 1 << 5

_PAGEMAP_SCAN = 0xC0606610
_WP_MATCHING = 1 << 0
_CHECK_WPASYNC = 1 << 1
_ARGUMENT = struct.Struct("=12Q")
_WALK_END = 4 * 8  # offset of walk_end in struct pm_scan_arg
_REGIONS = 16384
_REGION = 3 * 8  # struct page_region: start, end, categories

SOFT_DIRTY = 1 << 55
PRESENT = 1 << 63
SWAPPED = 1 << 62
OF_FILE = 1 << 61
"""A file's page, or one of shared memory."""
_FRAME = SOFT_DIRTY - 1  # all zeros for who lacks CAP_SYS_ADMIN

Region = tuple[int, int]


class Scanner:
    """PAGEMAP_SCAN over one process. Holds a buffer for its answers; not for several threads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = ctypes.create_string_buffer(_REGIONS * _REGION)
        self._view = memoryview(self._buffer)  # its `raw` would copy all of it

    def scan(
        self,
        start: int,
        end: int,
        *,
        all_of: int = 0,
        any_of: int = 0,
        inverted: int = 0,
        rearm: bool = False,
    ) -> list[Region]:
        """Ranges of [START, END) whose pages have ALL_OF and one of ANY_OF the categories (none: don't care).

        INVERTED categories count where they are absent. REARM write-protects, in the same step, the pages that are
        returned, and makes the call fail with EPERM where memory isn't registered with WP_ASYNC.
        """
        found: list[Region] = []
        flags = (_WP_MATCHING | _CHECK_WPASYNC) if rearm else 0
        at = start
        while at < end:
            argument = bytearray(
                _ARGUMENT.pack(
                    _ARGUMENT.size,
                    flags,
                    at,
                    end,
                    0,
                    ctypes.addressof(self._buffer),
                    _REGIONS,
                    0,
                    inverted,
                    all_of,
                    any_of,
                    all_of | any_of,
                )
            )
            count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
            values = array("Q", bytes(self._view[: count * _REGION]))
            found += zip(values[0::3], values[1::3], strict=True)
            at = struct.unpack_from("=Q", argument, _WALK_END)[0]
        return found


def entries(fd: int, start: int, end: int) -> array[int]:
    """The 64-bit entries of the pages of [START, END); fewer where the address space ends."""
    data = os.pread(fd, (end - start) // PAGE * 8, start // PAGE * 8)
    return array("Q", data[: len(data) // 8 * 8])


def supports_scan() -> bool:
    """Whether this kernel has PAGEMAP_SCAN (6.7). Asks it about nothing."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        Scanner(fd).scan(0, PAGE, all_of=IS_WRITTEN)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def supports_soft_dirty() -> bool:
    """Whether this kernel marks written pages: one just written must have the mark, and a frame that we may know of."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
            page[0] = 1
            view = ctypes.c_char.from_buffer(page)
            address = ctypes.addressof(view)
            del view
            entry = entries(fd, address, address + PAGE)[0]
            return bool(entry & SOFT_DIRTY and entry & _FRAME)
    finally:
        os.close(fd)
