"""Sets of addresses as sorted lists of disjoint [start, end) pairs."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Sorted, with overlapping and touching ranges made one; empty ones vanish."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if found and start <= found[-1][1]:
            if end > found[-1][1]:
                found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def without(ranges: list[Range], taken: list[Range]) -> list[Range]:
    """What of RANGES isn't in TAKEN; both sorted and disjoint."""
    found: list[Range] = []
    at = 0
    for start, end in ranges:
        while at < len(taken) and taken[at][1] <= start:
            at += 1
        index = at
        while start < end:
            if index == len(taken) or taken[index][0] >= end:
                found.append((start, end))
                break
            if taken[index][0] > start:
                found.append((start, taken[index][0]))
            start = taken[index][1]
            index += 1
    return found


def common(left: list[Range], right: list[Range]) -> list[Range]:
    """What is in both; both sorted and disjoint."""
    found: list[Range] = []
    first = second = 0
    while first < len(left) and second < len(right):
        start = max(left[first][0], right[second][0])
        end = min(left[first][1], right[second][1])
        if start < end:
            found.append((start, end))
        if left[first][1] < right[second][1]:
            first += 1
        else:
            second += 1
    return found


def size(ranges: Iterable[Range]) -> int:
    """Bytes."""
    return sum(end - start for start, end in ranges)
