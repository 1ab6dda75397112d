"""Pages put into a restored task that doesn't run yet: what it had written to private mappings of files.

The pager can't give it these when it touches them: of a file's mapping a userfaultfd tells no missing page (only of
anonymous and shared memory, userfaultfd(2)). So they are written in the frozen window, through /proc/PID/mem, which
makes each a copy of the task's own. That takes 0.3 s for 256 MiB, however they are scattered; CRIU, which dumps, sends
and restores them one run after the other, took 1.1 s for one range and 3 to 4 s for every other page.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from runtime.errors import SystemFault
from runtime.pagecache.store import TaskPages

_PIECE = 1 << 20
_SHARE = 8 << 20
"""Bytes that are worth a thread."""
_THREADS = min(4, os.cpu_count() or 1)


def place(pid: int, pages: TaskPages) -> int:
    """Write all of PAGES to where they belong in process PID; how many bytes.

    Raises SystemFault if one has no place there.
    """
    runs = [(start, end) for start, end, _ in pages.known.ranges()]
    total = sum(end - start for start, end in runs)
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _no_place(pid, error) from error
    try:
        with ThreadPoolExecutor(_THREADS, "placing") as threads:
            for _ in threads.map(lambda part: _write(memory, pages, part), _parts(runs, total)):
                pass
    except OSError as error:
        raise _no_place(pid, error) from error
    finally:
        os.close(memory)
    return total


def _parts(runs: list[tuple[int, int]], total: int) -> Iterator[list[tuple[int, int]]]:
    """RUNS in as many lists as there are threads for them, in pieces that one call writes."""
    share = max(_SHARE, total // _THREADS)
    part: list[tuple[int, int]] = []
    size = 0
    for start, end in runs:
        while start < end:
            until = min(end, start + _PIECE)
            part.append((start, until))
            size += until - start
            start = until
            if size >= share:
                yield part
                part, size = [], 0
    if part:
        yield part


def _write(memory: int, pages: TaskPages, part: list[tuple[int, int]]) -> None:
    for start, end in part:
        for view in pages.views(start, end):
            if os.pwrite(memory, view, start) != len(view):
                raise OSError(0, f"a part of {start:#x}-{end:#x} can't be written")
            start += len(view)


def _no_place(pid: int, error: OSError) -> SystemFault:
    return SystemFault(
        doing="placing", target=f"pages of process {pid}", why=error.strerror or str(error)
    )
