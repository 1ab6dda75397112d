"""System calls about files that Python's os module lacks: thin wrappers, nothing else.

Each makes one call, tests the result, and raises OSError with the path or descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import lru_cache

_libc = ctypes.CDLL(None, use_errno=True)

_NR_OPENAT2 = 437  # the same on every architecture

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

SYNC_FILE_RANGE_WRITE = 2
FICLONE = 0x40049409


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


_openat2 = ctypes.CFUNCTYPE(
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_OpenHow),
    ctypes.c_size_t,
    use_errno=True,
)(("syscall", _libc))

_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_syncfs = _libc.syncfs
_syncfs.argtypes = [ctypes.c_int]


def _fail(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), what)


@lru_cache(maxsize=64)
def _how(flags: int, mode: int, resolve: int) -> _OpenHow:
    # The kernel only reads it, so one may serve many calls and threads.
    return _OpenHow(flags | os.O_CLOEXEC, mode, resolve)


def openat2(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    """openat2(2), close-on-exec. Raises OSError with the path."""
    how = _how(flags, mode, resolve)
    while True:
        fd = int(_openat2(_NR_OPENAT2, dir_fd, path, ctypes.byref(how), ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        # EAGAIN: a rename elsewhere raced with the look-up; openat2(2) says to try again. With
        # O_NONBLOCK it can also mean a lease, which goes to the caller.
        if ctypes.get_errno() != errno.EINTR and (
            ctypes.get_errno() != errno.EAGAIN or flags & os.O_NONBLOCK
        ):
            raise _fail(os.fsdecode(path))


def start_writeback(fd: int) -> None:
    """sync_file_range(2) over the whole file: begin writing dirty pages, don't wait."""
    if _sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE) != 0:
        raise _fail(f"fd {fd}")


def syncfs(fd: int) -> None:
    """syncfs(2): everything written to the file system that holds `fd` is on disk."""
    if _syncfs(fd) != 0:
        raise _fail(f"fd {fd}")
