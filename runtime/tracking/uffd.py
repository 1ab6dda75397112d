"""userfaultfd(2), as much of it as write tracking needs: constants and thin wrappers, nothing else.

Source: ioctl_userfaultfd(2) and Linux's include/uapi/linux/userfaultfd.h. All calls work on a descriptor of another
process's userfaultfd as well (pidfd_getfd(2)): it stands for the address space that made it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from runtime.syscalls import MACHINE

NR_USERFAULTFD = 323 if MACHINE == "x86_64" else 282

USER_MODE_ONLY = 1
FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
FEATURE_WP_UNPOPULATED = 1 << 13
FEATURE_WP_ASYNC = 1 << 15
"""Linux 6.7: a write to a protected page takes the protection away by itself, and nobody is told."""

_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_UNREGISTER = 0x8010AA01
_MODE_WP = 1 << 1
_UFFDIO_WRITEPROTECT = 0xC018AA06
_PROTECT = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def userfaultfd(flags: int) -> int:
    """userfaultfd(2) for the caller's own address space."""
    fd: int = _libc.syscall(ctypes.c_long(NR_USERFAULTFD), ctypes.c_int(flags))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "userfaultfd")
    return fd


def enable(fd: int, features: int) -> int:
    """UFFDIO_API: switch FEATURES on; returns all that the kernel has. Once per descriptor."""
    argument = bytearray(struct.pack("=3Q", _API, features, 0))
    fcntl.ioctl(fd, _UFFDIO_API, argument)
    return int(struct.unpack("=3Q", argument)[1])


def register(fd: int, start: int, end: int) -> None:
    """UFFDIO_REGISTER in write-protect mode: [START, END), whole pages of mapped memory."""
    fcntl.ioctl(
        fd, _UFFDIO_REGISTER, bytearray(struct.pack("=4Q", start, end - start, _MODE_WP, 0))
    )


def unregister(fd: int, start: int, end: int) -> None:
    """UFFDIO_UNREGISTER."""
    fcntl.ioctl(fd, _UFFDIO_UNREGISTER, bytearray(struct.pack("=2Q", start, end - start)))


def protect(fd: int, start: int, end: int) -> None:
    """UFFDIO_WRITEPROTECT: the pages of [START, END), all of it registered."""
    fcntl.ioctl(
        fd, _UFFDIO_WRITEPROTECT, bytearray(struct.pack("=3Q", start, end - start, _PROTECT))
    )


def supports_async() -> bool:
    """Whether this kernel tracks writes without a handler. Asks the kernel, changes nothing."""
    try:
        fd = userfaultfd(USER_MODE_ONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Features that it doesn't know make the call fail with EINVAL.
        enable(fd, FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
