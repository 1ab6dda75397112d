"""The memory of a container that isn't private and anonymous, kind by kind, for a forecast.

A warm move's rounds carry private anonymous memory and what was written to private mappings of files (see
runtime/veil/carry.py), and what processes share (runtime/shared). The rest is small in most programs; CRIU dumps it in
the frozen window, and in every other mode all that is named here.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from runtime import mountinfo
from runtime.errors import NotFound
from runtime.holes import data_ranges
from runtime.tracking import population
from runtime.tracking.ranges import Range, common, size, without
from runtime.tracking.vmas import Vma, mappings
from runtime.veil.carry import carryable, carryable_copies

SHARED = "shared memory"
MEMFD = "memfd"
SYSTEM_V = "System V and huge shared memory"
FILES = "private file mappings"
READ_ONLY = "private file mappings that CRIU carries"
HUGE = "huge pages"
STACKS = "stacks of main threads"
LOCKED = "locked and special memory"
TMPFS = "files in memory (tmpfs)"
_MOST_RUNS = 1 << 17
IN_ROUNDS = frozenset({SHARED, MEMFD, FILES})
"""What a warm move copies while the container runs."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """size: bytes; runs: ranges in which they lie, where that is known: CRIU takes one after the other."""

    what: str
    size: int
    runs: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """Of all processes. carried: bytes of private memory that rounds can copy; mappings: how many there are."""

    tasks: int
    mappings: int
    carried: int
    left: tuple[Leftover, ...]

    @property
    def shared(self) -> int:
        """Bytes of LEFT that processes share, and that a warm move copies while the container runs."""
        return sum(one.size for one in self.left if one.what in (SHARED, MEMFD))

    @property
    def copies(self) -> int:
        """Bytes of LEFT that were written to private mappings of files, and that it copies likewise."""
        return sum(one.size for one in self.left if one.what == FILES)


def look(pids: Iterable[int], external: Iterable[str] = ()) -> Content:
    """What these processes of one container have now. EXTERNAL: mount points whose content isn't the container's."""
    found: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    seen: set[int] = set()
    tasks = count = carried = 0
    first = 0
    for pid in pids:
        with contextlib.suppress(OSError, NotFound):
            vmas = mappings(pid)
            if not vmas:
                continue  # a zombie
            hidden = carryable(pid)
            with population.opened(pid) as fd:
                carried += size(population.populated(fd, hidden))
                for what, amount, count_of in _left(pid, fd, vmas, hidden, seen):
                    found[what] += amount
                    runs[what] += count_of
            for what, amount in _unmapped(pid, seen):
                found[what] += amount
            tasks += 1
            count += len(vmas)
            first = first or pid
    if first:
        found[TMPFS] += _tmpfs(first, set(external))
    left = tuple(
        Leftover(what, amount, runs[what]) for what, amount in found.most_common() if amount
    )
    return Content(tasks, count, carried, left)


def _left(
    pid: int, fd: int, vmas: list[Vma], hidden: list[Range], seen: set[int]
) -> Iterator[tuple[str, int, int]]:
    copies = carryable_copies(pid)
    for vma in vmas:
        if vma.kernels:
            continue
        whole = (vma.start, vma.end)
        if vma.shared:
            what = _kind(vma.name)
            if what and vma.inode not in seen:
                seen.add(vma.inode)
                yield what, *_allocated(pid, vma)
            continue
        kind = kind_of(vma, copies)
        if kind in (FILES, READ_ONLY):
            there = population.copies(fd, [whole])
        else:
            there = population.populated(fd, without([whole], hidden))
        yield kind, size(there), len(there)


def kind_of(vma: Vma, copies: list[Range]) -> str:
    """Of private memory that isn't hidden from CRIU as anonymous. COPIES: where a file's pages may be."""
    if vma.name.startswith("/anon_hugepage"):
        return HUGE
    if vma.inode:
        return FILES if common([(vma.start, vma.end)], copies) else READ_ONLY
    return STACKS if vma.name == "[stack]" else LOCKED


def _kind(name: str) -> str:
    """Of a shared mapping; "" for one of a file, which travels with the files."""
    if name.startswith("/memfd:"):
        return MEMFD
    if name.startswith("/dev/zero"):
        return SHARED
    if name.startswith(("/SYSV", "/anon_hugepage")):
        return SYSTEM_V
    return ""


def _allocated(pid: int, vma: Vma) -> tuple[int, int]:
    """What the memory behind a shared mapping takes, whoever wrote it: bytes, and in how many ranges."""
    path = f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    except OSError:
        return vma.end - vma.start, 1
    try:
        found = os.fstat(fd)
        runs = sum(1 for _ in islice(data_ranges(fd, 0, found.st_size), _MOST_RUNS))
        return found.st_blocks * 512, runs
    finally:
        os.close(fd)


def _unmapped(pid: int, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Memfds that are open and mapped nowhere."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            path = f"/proc/{pid}/fd/{name}"
            if os.readlink(path).startswith("/memfd:"):
                found = os.stat(path)
                if found.st_ino not in seen:
                    seen.add(found.st_ino)
                    yield MEMFD, found.st_blocks * 512


def _tmpfs(pid: int, external: set[str]) -> int:
    """Bytes in file systems of the container's own that live in memory."""
    total = 0
    seen: set[int] = set()
    for mount in mountinfo.mounts(pid):
        whole = mount.kind == "tmpfs" and mount.root == "/"
        if not whole or mount.point in external or mount.device in seen:
            continue
        seen.add(mount.device)
        with contextlib.suppress(OSError):
            disk = os.statvfs(f"/proc/{pid}/root{mount.point}")
            total += (disk.f_blocks - disk.f_bfree) * disk.f_frsize
    return total
