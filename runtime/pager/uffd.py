"""userfaultfd(2): ioctls and messages, nothing else. Numbers are the same on x86-64 and aarch64."""

from __future__ import annotations

import fcntl
import os
import struct

PAGE = 4096

_COPY = 0xC028AA03
_ZEROPAGE = 0xC020AA04
_WAKE = 0x8010AA02
_RANGE = struct.Struct("=QQ")
_COPY_ARG = struct.Struct("=QQQQq")
"""struct uffdio_copy: dst, src, len, mode, copy."""
_ZERO_ARG = struct.Struct("=QQQq")
"""struct uffdio_zeropage: start, len, mode, zeropage."""

MESSAGE = struct.Struct("=B7x3Q")
"""struct uffd_msg: the event, and up to three numbers."""
PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16

FEATURE_EVENT_FORK = 1 << 1


def copy(fd: int, target: int, source: int, length: int) -> tuple[int, int]:
    """UFFDIO_COPY: LENGTH bytes from SOURCE (here) to TARGET (there), waking who waits for them.

    Returns (bytes placed, 0), or (bytes placed before it failed, errno).
    """
    arg = bytearray(_COPY_ARG.pack(target, source, length, 0, 0))
    try:
        fcntl.ioctl(fd, _COPY, arg)
    except OSError as error:
        done = _COPY_ARG.unpack(arg)[4]
        return max(done, 0), error.errno or 5
    return length, 0


def zero(fd: int, target: int, length: int) -> int:
    """UFFDIO_ZEROPAGE: returns 0 or an errno."""
    try:
        fcntl.ioctl(fd, _ZEROPAGE, bytearray(_ZERO_ARG.pack(target, length, 0, 0)))
    except OSError as error:
        return error.errno or 5
    return 0


def wake(fd: int, start: int, length: int) -> int:
    """UFFDIO_WAKE: whoever waits for pages in that range looks again. Returns 0 or an errno."""
    try:
        fcntl.ioctl(fd, _WAKE, bytearray(_RANGE.pack(start, length)))
    except OSError as error:
        return error.errno or 5
    return 0


def wake_all(fd: int) -> None:
    """Everybody who waits, at whatever address. The range must end within the task's address space, whose size depends
    on machine and kernel: the largest that is taken is right."""
    lowest = 64 << 10  # vm.mmap_min_addr's usual value; nothing is mapped below
    for bits in (56, 52, 48, 47, 42, 39):
        if not wake(fd, lowest, (1 << bits) - PAGE - lowest):
            return


def features(fd: int) -> int:
    """The features that were enabled, from fdinfo: "API: aa:<features>:<all features>"."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("API:"):
                return int(line.split(":")[2], 16)
    return 0


def is_userfaultfd(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[userfaultfd]"
