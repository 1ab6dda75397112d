"""How much memory a program writes in a given time, from looks at it in short intervals: no I/O here.

A rate would not do: a program that writes the same 10 MiB a thousand times a second has a high rate and little to send.
What counts is how many *different* pages are written within a time, and that bends: it grows fast at first and then
only as far as the program's working set goes. So what each interval wrote is kept as ranges, and the ranges of
intervals that follow each other are united: pairs tell of twice the time, quadruples of four times, and so on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from runtime.tracking.ranges import Range, merged, size

Ranges = Mapping[int, Sequence[Range]]
"""By process."""


@dataclass(frozen=True, slots=True)
class Interval:
    """seconds long; written: the ranges that were written in it."""

    seconds: float
    written: Ranges


@dataclass(frozen=True, slots=True)
class Curve:
    """points: (seconds, bytes of different pages written in that time), both growing; none: nothing is written."""

    points: tuple[tuple[float, float], ...] = ()

    def __call__(self, seconds: float) -> float:
        """Bytes written within SECONDS. Between points straight; beyond the last as steep as the end of the curve."""
        if not self.points or seconds <= 0:
            return 0.0
        before = (0.0, 0.0)
        for point in self.points:
            if seconds <= point[0]:
                break
            before = point
        else:
            # Longer than anybody looked: as between the last two points, which of a working set is nearly flat.
            before, point = (
                (self.points[-2] if len(self.points) > 1 else (0.0, 0.0)),
                self.points[-1],
            )
        slope = (point[1] - before[1]) / (point[0] - before[0])
        return before[1] + slope * (seconds - before[0])

    @property
    def rate(self) -> float:
        """Bytes per second, over the longest time that was looked at."""
        return self.points[-1][1] / self.points[-1][0] if self.points else 0.0


def curve(*series: Sequence[Interval]) -> Curve:
    """The curve through what SERIES show, each a sequence of intervals that followed each other."""
    points: list[tuple[float, float]] = []
    for intervals in series:
        span = 1
        while span <= len(intervals):
            points.append(_average(intervals, span))
            span *= 2
        if intervals and span // 2 < len(intervals):
            points.append(_average(intervals, len(intervals)))
    return Curve(_growing(points))


def _average(intervals: Sequence[Interval], span: int) -> tuple[float, float]:
    """(mean seconds, mean bytes) of SPAN intervals in a row."""
    seconds, total, count = 0.0, 0, 0
    for first in range(0, len(intervals) - span + 1, span):
        part = intervals[first : first + span]
        seconds += sum(one.seconds for one in part)
        total += size_of(united(one.written for one in part))
        count += 1
    return seconds / count, total / count


def united(several: Iterable[Ranges]) -> dict[int, list[Range]]:
    """What is in any of SEVERAL, by process."""
    found: dict[int, list[Range]] = {}
    for one in several:
        for pid, ranges in one.items():
            found.setdefault(pid, []).extend(ranges)
    return {pid: merged(ranges) for pid, ranges in found.items()}


def size_of(ranges: Ranges) -> int:
    """Bytes."""
    return sum(map(size, ranges.values()))


def _growing(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Sorted, each longer time with at least as many bytes; measured points may contradict each other a little."""
    found: list[tuple[float, float]] = []
    for seconds, total in sorted(points):
        if seconds <= 0:
            continue
        highest = max(total, found[-1][1]) if found else total
        if found and seconds - found[-1][0] < 1e-3:
            found[-1] = (found[-1][0], highest)
        else:
            found.append((seconds, highest))
    return tuple(found)
