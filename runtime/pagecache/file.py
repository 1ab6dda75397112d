"""Pages of tasks in one nameless file on a disk: for memory that is too large to be held twice.

As in store.py a page's place follows from its address, so that there is no table of pages to keep, and which pages
there are is asked from the file (SEEK_DATA). But files on disks end long before addresses do (16 TiB on ext4), so the
address space is cut into windows, and a window gets a place in the file when its first page comes. What no page lies
in is a hole and takes no room.

The file has no name (O_TMPFILE where there is such a thing): nothing of it is left, however its process ends.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import Unsupported, from_os_error
from runtime.holes import data_ranges, punch_hole

WINDOW = 64 << 20
SIZE = 2 << 40
"""Bytes of address space for all windows: less than the largest file of ext4, XFS, btrfs, f2fs and tmpfs."""
_NO_HOLES = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})

Piece = tuple[int, int]
"""Offset in the file, and bytes."""


class PageFile:
    """DIRECTORY: where the file would be if it had a name. Use as a context manager. Not for several threads.

    Raises Unsupported where there can be no such file.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - ours until close()
        except OSError as error:
            raise self._unfit(f"no file can be made in {directory}: {error.strerror}") from error
        self.fd = self._file.fileno()
        try:
            os.ftruncate(self.fd, SIZE)
        except OSError as error:
            self.close()
            why = f"in {directory} are no large files with holes: {error.strerror}"
            raise self._unfit(why) from error
        self._windows: dict[int, dict[int, int]] = {}
        self._free: list[int] = []
        self._used = 0

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def write(self, task: int, start: int, data: memoryview) -> None:
        """DATA is the memory of the task from START on; whole pages."""
        at = 0
        while at < len(data):
            offset, size = self._place(task, start + at, len(data) - at)
            try:
                at += os.pwrite(self.fd, data[at : at + size], offset)
            except OSError as error:
                raise self._fault(error) from error

    def forget(self, task: int, start: int, end: int) -> None:
        """The pages from START to END are zeros, or not there any more."""
        windows = self._windows.get(task, {})
        for number in range(start // WINDOW, -(-end // WINDOW)):
            if number in windows:
                low = max(start, number * WINDOW)
                high = min(end, (number + 1) * WINDOW)
                self._punch(windows[number] * WINDOW + low % WINDOW, high - low)

    def drop(self, task: int) -> None:
        """The task has gone with all its pages."""
        for number in list(self._windows.get(task, {})):
            self._drop_window(task, number)
        self._windows.pop(task, None)

    def runs(self, task: int) -> Iterator[tuple[int, int]]:
        """The ranges of addresses [start, end) that have pages, in order; those that touch may come apart."""
        try:
            for number, place in sorted(self._windows.get(task, {}).items()):
                base = place * WINDOW
                for start, end in data_ranges(self.fd, base, base + WINDOW):
                    yield number * WINDOW + start - base, number * WINDOW + end - base
        except OSError as error:
            raise self._fault(error) from error

    def taking(self, task: int, start: int, end: int) -> Iterator[Piece]:
        """Where the pages from START to END lie, to be read one after the other and then no more.

        Windows below START are given back to the disk: call it for rising addresses.
        """
        windows = self._windows.get(task, {})
        for number in [number for number in windows if (number + 1) * WINDOW <= start]:
            self._drop_window(task, number)
        while start < end:
            number = start // WINDOW
            stop = min(end, (number + 1) * WINDOW)
            yield windows[number] * WINDOW + start % WINDOW, stop - start
            start = stop

    # ---- inside

    def _place(self, task: int, address: int, size: int) -> Piece:
        number, inside = divmod(address, WINDOW)
        windows = self._windows.setdefault(task, {})
        place = windows.get(number)
        if place is None:
            if not self._free:
                if (self._used + 1) * WINDOW > SIZE:
                    raise Unsupported(
                        doing="keeping", target="pages", why="the memory is scattered too widely"
                    )
                self._free.append(self._used)
                self._used += 1
            place = windows[number] = self._free.pop()
        return place * WINDOW + inside, min(size, WINDOW - inside)

    def _drop_window(self, task: int, number: int) -> None:
        place = self._windows[task].pop(number)
        self._punch(place * WINDOW, WINDOW)
        self._free.append(place)

    def _punch(self, offset: int, size: int) -> None:
        try:
            punch_hole(self.fd, offset, size)
        except OSError as error:
            if error.errno not in _NO_HOLES:
                raise self._fault(error) from error
            for at in range(offset, offset + size, 1 << 20):
                os.pwrite(self.fd, bytes(min(1 << 20, offset + size - at)), at)

    def _unfit(self, why: str) -> Unsupported:
        return Unsupported(doing="keeping pages in", target=str(self._directory), why=why)

    def _fault(self, error: OSError) -> Exception:
        return from_os_error(error, doing="keeping pages in", target=str(self._directory))
