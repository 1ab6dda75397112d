"""The same share of a resource in the numbers of cgroup v1 (OCI) and of v2.

The ranges differ (2..262144 shares, 1..10000 weights), so one side is coarser. What matters for a
container that moves between the two: the defaults map to each other, and going there and back
again from the coarser side changes nothing. The spec keeps what its owner said, so a value isn't
worn down by moving repeatedly.
"""

from __future__ import annotations

import math

_SHARES_MIN, _SHARES_DEFAULT, _SHARES_MAX = 2, 1024, 262144


def shares_to_weight(shares: int) -> int:
    """cpu.shares -> cpu.weight: a quadratic in log2 through (2,1), (1024,100), (262144,10000).

    The straight line through the ends, used by engines for long, made 39 of the default 1024: a
    container had less than half the weight of its neighbours at their default of 100.
    """
    if shares <= _SHARES_MIN:
        return 1
    if shares >= _SHARES_MAX:
        return 10000
    log = math.log2(shares)
    exponent = (log * log + 125 * log) / 612.0 - 7.0 / 34.0
    return math.ceil(10**exponent - 1e-9)


def weight_to_shares(weight: int) -> int:
    """cpu.weight -> cpu.shares, such that `shares_to_weight` gives the same weight again."""
    if shares_to_weight(_SHARES_DEFAULT) == weight:
        return _SHARES_DEFAULT
    low, high = _SHARES_MIN, _SHARES_MAX
    while low < high:
        middle = (low + high) // 2
        if shares_to_weight(middle) < weight:
            low = middle + 1
        else:
            high = middle
    return low


def blkio_to_io_weight(weight: int) -> int:
    """blkio weight 10..1000 -> io.weight 1..10000, linear."""
    return 1 + (weight - 10) * 9999 // 990


def io_to_blkio_weight(weight: int) -> int:
    """io.weight -> blkio weight, such that blkio -> io -> blkio changes nothing."""
    return 10 + round((weight - 1) * 990 / 9999)
