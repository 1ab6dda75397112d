"""In which order pages are asked for that are still at the other host: pure, tables of ranges and no clock.

    a fault            the page and those behind it, urgently, whether asked for before or not: somebody waits
    around a fault     the neighbourhood next, before the rest: programs touch what lies together
    the rest           from the last fault's neighbourhood on, in the order of addresses, all around

Urgent asks have a lane of their own. Of the others only so much is under way at a time that the asks of a neighbourhood
don't come long behind; enough to keep a lane busy over a long distance (WINDOW).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runtime.pager.pending import Pending

PAGE = 4096
NEAR = 64 << 10
"""Bytes asked for urgently at a fault, from its page on."""
BEFORE, BEHIND = 256 << 10, 768 << 10
"""Bytes around a fault that come next."""
PIECE = 4 << 20
"""Bytes of one ask; less is more messages, more makes a neighbourhood wait longer."""
WINDOW = 32 << 20
"""Bytes that are under way, but for the urgent ones: 100 ms of a lane with 320 MB/s."""
MAX_RANGES = 4096
"""Of one ask."""
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Ask:
    task: int
    ranges: tuple[Range, ...]
    urgent: bool = False


class Wanted:
    """OWED: what is still to come, by task; ranges sorted and disjoint."""

    def __init__(self, owed: Mapping[int, Iterable[Range]]) -> None:
        self._owed = {task: Pending(ranges) for task, ranges in owed.items()}
        self._unasked = {task: pending.copy() for task, pending in self._owed.items()}
        self._under_way = {task: Pending() for task in self._owed}
        self._urgent: deque[Ask] = deque()
        self._urgently: set[tuple[int, int]] = set()
        self._near: deque[tuple[int, int, int]] = deque()
        self._order = deque(sorted(self._owed))
        self._cursor = dict.fromkeys(self._owed, 0)
        self._flight = 0

    @property
    def missing(self) -> int:
        """Bytes that have not arrived."""
        return sum(pending.size for pending in self._owed.values())

    @property
    def done(self) -> bool:
        return not any(self._owed.values())

    def fault(self, task: int, address: int) -> None:
        """Somebody waits for that page."""
        owed = self._owed.get(task)
        if owed is None or owed.find(address) is None or (task, address) in self._urgently:
            return  # it is here, or on its fast way
        ranges = tuple(_within(owed, address, address + NEAR))
        self._urgently.update((task, page) for a, b in ranges for page in range(a, b, PAGE))
        for start, end in ranges:
            self._unasked[task].remove(start, end)
        self._urgent.append(Ask(task, ranges, urgent=True))
        self._near.appendleft((task, max(address - BEFORE, 0), address + BEHIND))
        # The rest goes on from here, too.
        self._cursor[task] = address + BEHIND
        self._order.remove(task)
        self._order.appendleft(task)

    def arrived(self, task: int, ranges: Iterable[Range]) -> None:
        if task not in self._owed:
            return
        for start, end in ranges:
            self._owed[task].remove(start, end)
            self._unasked[task].remove(start, end)
            taken = self._under_way[task].remove(start, end)
            self._flight -= sum(b - a for a, b, _ in taken)

    def next(self) -> Ask | None:
        """What to ask for now; None until something arrives or somebody faults."""
        if self._urgent:
            return self._urgent.popleft()
        while self._flight < WINDOW:
            if self._near:
                task, start, end = self._near.popleft()
                ranges = _within(self._unasked[task], start, end)
            else:
                if not (found := self._rest()):
                    return None
                task, ranges = found
            if ranges:
                return self._background(task, ranges)
        return None

    def _rest(self) -> tuple[int, list[Range]] | None:
        while self._order:
            task = self._order[0]
            unasked = self._unasked[task]
            ranges: list[Range] = []
            room = PIECE
            at = self._cursor[task]
            while room and len(ranges) < MAX_RANGES and (found := unasked.first(at)):
                start, end, _ = found
                if ranges and start < ranges[-1][1]:
                    break  # all around
                end = min(end, start + room)
                ranges.append((start, end))
                room -= end - start
                at = end
            if ranges:
                self._cursor[task] = at
                return task, ranges
            self._order.popleft()
            self._order.append(task)
            if not any(self._unasked.values()):
                return None
        return None

    def _background(self, task: int, ranges: list[Range]) -> Ask:
        for start, end in ranges:
            self._unasked[task].remove(start, end)
            self._under_way[task].add(start, end, 0)
            self._flight += end - start
        return Ask(task, tuple(ranges))


def _within(pending: Pending, start: int, end: int) -> list[Range]:
    """What PENDING has between two addresses."""
    found: list[Range] = []
    while start < end:
        piece = pending.first(start)
        if piece is None or piece[0] < start or piece[0] >= end:
            break
        found.append((piece[0], min(piece[1], end)))
        start = found[-1][1]
    return found
