"""The shared objects that processes have mapped or open.

System V segments are files of the same kind, but belong to an IPC namespace: CRIU makes them itself, in its own way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from runtime.tracking.vmas import mappings

ANONYMOUS = "/dev/zero"
"""What MAP_SHARED | MAP_ANONYMOUS is called (mmap(2), shmem_zero_setup in the kernel)."""
_MEMFD = "/memfd:"
_GONE = " (deleted)"
_SYSTEM_V = "/SYSV"


@dataclass(frozen=True, slots=True)
class SharedObject:
    """name: as memfd_create(2) takes it, which is how CRIU restores both kinds. path: opens it, for now."""

    inode: int
    name: str
    path: str


@cache
def device() -> int:
    """The device of the kernel's internal tmpfs, as in stat(2)."""
    fd = os.memfd_create("ckpt-device", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def objects(pids: Iterable[int]) -> dict[int, SharedObject]:
    """By inode. Processes that end meanwhile have none."""
    found: dict[int, SharedObject] = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for path, inode in _candidates(pid):
                if inode not in found and (name := _name(path)) is not None:
                    found[inode] = SharedObject(inode, name, path)
    return found


def largest(found: Iterable[SharedObject], count: int) -> list[SharedObject]:
    """Those COUNT that take the most memory; without those that have gone."""
    sizes: list[tuple[int, SharedObject]] = []
    for one in found:
        with contextlib.suppress(OSError):
            sizes.append((os.stat(one.path).st_blocks, one))
    sizes.sort(key=lambda pair: pair[0], reverse=True)
    return [one for _, one in sizes[: max(0, count)]]


def missing(wanted: Iterable[int], pids: Iterable[int]) -> set[int]:
    """Those inodes that none of the processes has; looks at no more of them than it must."""
    left = set(wanted)
    for pid in pids:
        if not left:
            break
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            left -= {inode for _, inode in _candidates(pid)}
    return left


def _candidates(pid: int) -> Iterator[tuple[str, int]]:
    """Path and inode of everything of that device, mapped or open."""
    wanted = device()
    text = f"{os.major(wanted):02x}:{os.minor(wanted):02x}"
    for vma in mappings(pid):
        if vma.inode and vma.device == text:
            yield f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}", vma.inode
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        with contextlib.suppress(OSError):  # closed meanwhile
            found = os.stat(path)
            if found.st_dev == wanted:
                yield path, found.st_ino


def _name(path: str) -> str | None:
    """None for what is none of ours, or gone."""
    try:
        link = os.readlink(path).removesuffix(_GONE)
    except OSError:
        return None
    if link.startswith(_SYSTEM_V):
        return None
    return link.removeprefix(_MEMFD)
