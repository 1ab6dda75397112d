"""Memory of a dump by kind: mappings (mm-ID.img) held against page maps."""

from __future__ import annotations

import os
import re
from collections import defaultdict

from images.image_file import Entry, load_image
from images.inspection import MemoryKind, SharedMemory
from images.pages import LAZY, PARENT, PRESENT, PageMap, read_page_map

# Status bits of a mapping (CRIU, criu/include/image.h).
_VSYSCALL, _VDSO, _HEAP, _VVAR = 1 << 2, 1 << 3, 1 << 5, 1 << 12
_FILE_PRIVATE, _FILE_SHARED, _ANON_SHARED = 1 << 6, 1 << 7, 1 << 8
_SYSVIPC, _MEMFD = 1 << 10, 1 << 14
_MAP_GROWSDOWN = 0x100

_SHARED_MAP = re.compile(r"pagemap-shmem-(\d+)\.img")
_ORDER = (
    "anonymous",
    "heap",
    "stack",
    "file private",
    "file shared",
    "shared memory",
    "kernel",
)


def memory_kinds(mm: Entry, page_map: PageMap | None) -> tuple[MemoryKind, ...]:
    """The mappings of one mm image, by kind; those that occur, in a fixed order."""
    found: dict[str, list[int]] = defaultdict(lambda: [0] * 5)
    for vma in mm.get("vmas", ()):
        start, end = vma["start"], vma["end"]
        sums = found[_kind(vma)]
        sums[0] += 1
        sums[1] += end - start
        if page_map is not None:
            for at, flag in enumerate((PRESENT, LAZY, PARENT), 2):
                sums[at] += page_map.bytes_within(start, end, flag)
    return tuple(MemoryKind(kind, *found[kind]) for kind in _ORDER if kind in found)


def shared_memory(directory: str, names: list[str]) -> tuple[SharedMemory, ...]:
    """Objects that several address spaces may map; CRIU dumps them once."""
    titles: dict[int, str] = {}
    if "memfd.img" in names:
        for inode in load_image(directory, "memfd.img", "MEMFD_INODE"):
            titles[inode["shmid"]] = inode["name"]
    found = []
    for name in names:
        match = _SHARED_MAP.fullmatch(name)
        if match:
            number = int(match[1])
            page_map = read_page_map(directory, name)
            dumped, lazy = page_map.bytes_of(PRESENT), page_map.bytes_of(LAZY)
            found.append(SharedMemory(number, titles.get(number, ""), dumped, lazy))
    return tuple(sorted(found, key=lambda item: item.id))


def page_map_of(directory: str, names: list[str], task_id: int) -> PageMap | None:
    name = f"pagemap-{task_id}.img"
    return read_page_map(directory, name) if name in names else None


def image_sizes(directory: str) -> dict[str, int]:
    """Every file of the directory and its size, by name."""
    with os.scandir(directory) as entries:
        sizes = {e.name: e.stat(follow_symlinks=False).st_size for e in entries}
    return dict(sorted(sizes.items()))


def _kind(vma: Entry) -> str:
    status = vma["status"]
    if status & (_VSYSCALL | _VDSO | _VVAR):
        return "kernel"
    if status & (_ANON_SHARED | _SYSVIPC | _MEMFD):
        return "shared memory"
    if status & _HEAP:
        return "heap"
    if vma["flags"] & _MAP_GROWSDOWN:
        return "stack"
    if status & _FILE_PRIVATE:
        return "file private"
    if status & _FILE_SHARED:
        return "file shared"
    return "anonymous"
