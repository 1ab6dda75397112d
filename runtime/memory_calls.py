"""System calls on other processes' memory; beside runtime/syscalls.py and like it.

Standard library only: the pager runs without site-packages.
"""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False  # importing typing costs the pager milliseconds
if TYPE_CHECKING:
    from collections.abc import Sequence

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
]  # fmt: skip
_libc.syscall.restype = ctypes.c_long

IOV_MAX = 1024
_CLONE_FILES = 0x400
_SIGCHLD = 17
_NR_CLONE = {"x86_64": 56, "aarch64": 220}


def _fail(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def process_vm_readv(pid: int, address: int, remote: Sequence[tuple[int, int]]) -> int:
    """process_vm_readv(2): the REMOTE ranges [start, end) of process PID, one after the other, to ADDRESS here.

    At most IOV_MAX ranges. Returns the bytes read, fewer than asked for where a page can't be read; raises OSError
    (EFAULT) if that is the first.
    """
    flat = [number for start, end in remote for number in (start, end - start)]
    size = sum(flat[1::2])
    theirs = ctypes.create_string_buffer(struct.pack(f"={len(flat)}Q", *flat), 8 * len(flat))
    ours = ctypes.create_string_buffer(struct.pack("=2Q", address, size), 16)
    done: int = _libc.process_vm_readv(pid, ours, 1, theirs, len(remote), 0)
    if done < 0:
        raise _fail(f"memory of process {pid}")
    return done


def fork_sharing_files() -> int:
    """fork(2), but parent and child have ONE table of descriptors (clone(2), CLONE_FILES).

    Only for a process with a single thread: Python's fork handlers don't run.
    """
    number = _NR_CLONE[os.uname().machine]
    zero = ctypes.c_ulong(0)
    result: int = _libc.syscall(
        ctypes.c_long(number), ctypes.c_ulong(_CLONE_FILES | _SIGCHLD), zero, zero, zero, zero
    )
    if result < 0:
        raise _fail("clone")
    return result
