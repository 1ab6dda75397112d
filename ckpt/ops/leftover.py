"""The memory of a container that isn't private and anonymous, kind by kind, for a forecast.

A warm move's rounds carry private anonymous memory (runtime/veil/carry.py) and what processes share (runtime/shared).
The rest is small in most programs; CRIU dumps it in the frozen window, and in every other mode all that is named here.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from runtime import mountinfo
from runtime.errors import NotFound
from runtime.tracking import pagemap, population
from runtime.tracking.pagemap import PAGE, Scanner
from runtime.tracking.ranges import Range, size, without
from runtime.tracking.vmas import Vma, mappings
from runtime.veil.carry import carryable

SHARED = "shared memory"
MEMFD = "memfd"
SYSTEM_V = "System V and huge shared memory"
FILES = "private file mappings"
STACKS = "stacks of main threads"
LOCKED = "locked and special memory"
TMPFS = "files in memory (tmpfs)"
IN_ROUNDS = frozenset({SHARED, MEMFD})
"""What a warm move copies while the container runs."""

_FILE = 1 << 61  # of a pagemap entry: a file's page, or shared anonymous (proc_pid_pagemap(5))
_HERE = pagemap.PRESENT | pagemap.SWAPPED


@dataclass(frozen=True, slots=True)
class Leftover:
    """size: bytes."""

    what: str
    size: int


@dataclass(frozen=True, slots=True)
class Content:
    """Of all processes. carried: bytes of private memory that rounds can copy; mappings: how many there are."""

    tasks: int
    mappings: int
    carried: int
    left: tuple[Leftover, ...]

    @property
    def shared(self) -> int:
        """Bytes of LEFT that a warm move copies while the container runs."""
        return sum(one.size for one in self.left if one.what in IN_ROUNDS)


def look(pids: Iterable[int], external: Iterable[str] = ()) -> Content:
    """What these processes of one container have now. EXTERNAL: mount points whose content isn't the container's."""
    found: Counter[str] = Counter()
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
                for what, amount in _left(pid, fd, vmas, hidden, seen):
                    found[what] += amount
            for what, amount in _unmapped(pid, seen):
                found[what] += amount
            tasks += 1
            count += len(vmas)
            first = first or pid
    if first:
        found[TMPFS] += _tmpfs(first, set(external))
    left = tuple(Leftover(what, amount) for what, amount in found.most_common() if amount)
    return Content(tasks, count, carried, left)


def _left(
    pid: int, fd: int, vmas: list[Vma], hidden: list[Range], seen: set[int]
) -> Iterator[tuple[str, int]]:
    for vma in vmas:
        if vma.kernels:
            continue
        whole = (vma.start, vma.end)
        if vma.shared:
            what = _kind(vma.name)
            if what and vma.inode not in seen:
                seen.add(vma.inode)
                yield what, _allocated(pid, vma)
        elif vma.inode:
            yield FILES, size(_copied(fd, whole))
        elif rest := without([whole], hidden):
            kind = STACKS if vma.name == "[stack]" else LOCKED
            yield kind, size(population.populated(fd, rest))


def _kind(name: str) -> str:
    """Of a shared mapping; "" for one of a file, which travels with the files."""
    if name.startswith("/memfd:"):
        return MEMFD
    if name.startswith("/dev/zero"):
        return SHARED
    if name.startswith(("/SYSV", "/anon_hugepage")):
        return SYSTEM_V
    return ""


def _allocated(pid: int, vma: Vma) -> int:
    """What the memory behind a shared mapping takes, whoever wrote it."""
    try:
        return os.stat(f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}").st_blocks * 512
    except OSError:
        return vma.end - vma.start


def _copied(fd: int, whole: Range) -> list[Range]:
    """Pages of a private mapping of a file that were written: no longer the file's."""
    try:
        return Scanner(fd).scan(
            *whole,
            all_of=pagemap.IS_FILE,
            any_of=pagemap.IS_PRESENT | pagemap.IS_SWAPPED,
            inverted=pagemap.IS_FILE,
        )
    except OSError:
        entries = pagemap.entries(fd, *whole)
        own = (entry & _HERE and not entry & _FILE for entry in entries)
        return [
            (whole[0] + n * PAGE, whole[0] + (n + 1) * PAGE) for n, mine in enumerate(own) if mine
        ]


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
