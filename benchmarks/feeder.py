"""Free memory that was touched just before: the same condition for everything that is measured.

A virtual machine gives memory that is free back to its host within seconds, and getting it again costs ten times as
much as what is measured (0.4 GB/s). Whoever happens to run after somebody else would look fast. So a process of its own
holds touched memory, and gives as much of it back as others take: the kernel hands out first what was freed last.

    python -m benchmarks.feeder MIB          says "full", then feeds until its standard input ends
"""

from __future__ import annotations

import contextlib
import mmap
import select
import subprocess
import sys
from collections.abc import Iterator

CHUNK = 16 << 20
SPARE = 2 << 30
"""Bytes that stay available for everybody else."""
_POPULATE_WRITE = 23
_LOOK = 2
"""Milliseconds between two looks: at 1.3 GB/s others take 3 MB meanwhile."""


def meminfo(name: str) -> int:
    """A line of /proc/meminfo in bytes."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise KeyError(name)


@contextlib.contextmanager
def fed(mib: int) -> Iterator[None]:
    """As much as MIB can be taken inside the block as if it had been touched just before. 0: nothing is done."""
    room = (meminfo("MemAvailable") - SPARE) >> 20
    size = min(mib, room)
    if size <= 0:
        yield
        return
    argv = [sys.executable, "-m", "benchmarks.feeder", str(size)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            if process.stdout.readline() != b"full\n":
                raise RuntimeError("the feeder did not start")
            yield
        finally:
            process.stdin.close()


def feed(mib: int) -> None:
    memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    held = len(memory)
    for at in range(0, held, CHUNK):
        memory.madvise(_POPULATE_WRITE, at, min(CHUNK, held - at))
    level = meminfo("MemFree")
    print("full", flush=True)
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while not poller.poll(_LOOK):
        while held and meminfo("MemFree") < level:
            size = min(CHUNK, held)
            held -= size
            memory.madvise(mmap.MADV_DONTNEED, held, size)


if __name__ == "__main__":
    feed(int(sys.argv[1]))
