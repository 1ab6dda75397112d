"""What an address space still needs: ranges, and for each where its pages lie in the page cache.

Pure arithmetic on sorted ranges. A range is [start, end) in the task's memory as it is now; its pages lie in the cache
at start + shift, where they were at the dump: shift is 0 until the task moves memory (mremap).
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right

TYPE_CHECKING = False  # importing typing costs the pager milliseconds
if TYPE_CHECKING:
    from collections.abc import Iterable


class Pending:
    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._shifts: list[int] = []
        for start, end in runs:
            self.add(start, end, 0)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __len__(self) -> int:
        return len(self._starts)

    def ranges(self) -> list[tuple[int, int, int]]:
        """All, as (start, end, shift)."""
        return list(zip(self._starts, self._ends, self._shifts, strict=True))

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self._ends) - sum(self._starts)

    def save(self, fd: int) -> None:
        """Write the ranges, without their shifts, into an empty file."""
        with open(fd, "wb", closefd=False) as file:
            for part in (self._starts, self._ends):
                array("Q", part).tofile(file)

    @classmethod
    def load(cls, fd: int) -> Pending:
        """What was saved there."""
        both = array("Q", os.pread(fd, os.fstat(fd).st_size, 0)).tolist()
        made, half = cls(), len(both) // 2
        made._starts, made._ends, made._shifts = both[:half], both[half:], [0] * half
        return made

    def copy(self) -> Pending:
        """For a forked child."""
        other = Pending()
        other._starts, other._ends, other._shifts = self._starts[:], self._ends[:], self._shifts[:]
        return other

    def first(self, after: int = 0) -> tuple[int, int, int] | None:
        """The first range at or behind an address, cut off below it; from the beginning again behind the last."""
        if not self._starts:
            return None
        index = max(bisect_right(self._starts, after) - 1, 0)
        if self._ends[index] <= after:
            index = index + 1 if index + 1 < len(self._starts) else 0
            return self._starts[index], self._ends[index], self._shifts[index]
        start = (
            max(self._starts[index], after) if self._starts[index] <= after else self._starts[index]
        )
        return start, self._ends[index], self._shifts[index]

    def within(self, start: int, end: int) -> tuple[int, int, int] | None:
        """The first piece of a range between two addresses."""
        index = max(bisect_right(self._starts, start) - 1, 0)
        while index < len(self._starts) and self._starts[index] < end:
            if self._ends[index] > start:
                first, last = max(self._starts[index], start), min(self._ends[index], end)
                return first, last, self._shifts[index]
            index += 1
        return None

    def find(self, address: int) -> tuple[int, int, int] | None:
        """From ADDRESS to the end of the range that holds it, if one does."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or self._ends[index] <= address:
            return None
        return address, self._ends[index], self._shifts[index]

    def add(self, start: int, end: int, shift: int) -> None:
        """A range that doesn't overlap any other."""
        index = bisect_right(self._starts, start)
        if self._starts[index : index + 1] == [end] and self._shifts[index] == shift:
            end = self._ends[index]
            for part in (self._starts, self._ends, self._shifts):
                del part[index]
        if index and self._ends[index - 1] == start and self._shifts[index - 1] == shift:
            self._ends[index - 1] = end
            return
        self._starts.insert(index, start)
        self._ends.insert(index, end)
        self._shifts.insert(index, shift)

    def remove(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Take out whatever lies between two addresses, and return it."""
        low = bisect_right(self._starts, start) - 1
        if low < 0 or self._ends[low] <= start:
            low += 1
        high = low
        taken: list[tuple[int, int, int]] = []
        left: list[tuple[int, int, int]] = []
        while high < len(self._starts) and self._starts[high] < end:
            first, last, shift = self._starts[high], self._ends[high], self._shifts[high]
            if first < start:
                left.append((first, start, shift))
            if last > end:
                left.append((end, last, shift))
            taken.append((max(first, start), min(last, end), shift))
            high += 1
        self._starts[low:high] = [item[0] for item in left]
        self._ends[low:high] = [item[1] for item in left]
        self._shifts[low:high] = [item[2] for item in left]
        return taken

    def move(self, source: int, target: int, length: int) -> None:
        """The task moved LENGTH bytes of memory; what lay at the target is gone."""
        taken = self.remove(source, source + length)
        self.remove(target, target + length)
        for start, end, shift in taken:
            self.add(start - source + target, end - source + target, shift + source - target)
