"""How much is written in which time: known programs, and what their curve must say."""

from __future__ import annotations

import pytest

from ckpt.ops.writing import Curve, Interval, curve

PAGE = 4096


def interval(pages: range | list[int], seconds: float = 0.1) -> Interval:
    return Interval(seconds, {1: [(page * PAGE, page * PAGE + PAGE) for page in pages]})


def test_a_program_that_writes_the_same_pages_has_a_flat_curve() -> None:
    found = curve([interval(range(100))] * 8)
    assert found(0.1) == found(0.8) == found(60) == 100 * PAGE


def test_a_program_that_writes_ever_new_pages_has_a_straight_one() -> None:
    found = curve([interval(range(100 * n, 100 * n + 100)) for n in range(8)])
    for seconds in (0.05, 0.1, 0.3, 0.8, 2.0):
        assert found(seconds) == pytest.approx(1000 * PAGE * seconds)
    assert found.rate == pytest.approx(1000 * PAGE)


def test_short_and_long_intervals_make_one_curve() -> None:
    short = [interval(range(10), 0.01)] * 4
    long = [interval(range(10 + 100 * n, 110 + 100 * n), 0.1) for n in range(4)]
    found = curve(short, long)
    assert found(0.01) == 10 * PAGE
    assert found(0.4) == 400 * PAGE
    assert list(found.points) == sorted(found.points)


def test_processes_are_counted_apart_though_their_addresses_are_equal() -> None:
    both = Interval(0.1, {1: [(0, PAGE)], 2: [(0, PAGE)]})
    assert curve([both, both])(0.2) == 2 * PAGE


@pytest.mark.parametrize("empty", [Curve(), curve([]), curve([interval([])] * 4)])
def test_a_program_that_writes_nothing_has_nothing_to_send(empty: Curve) -> None:
    assert empty(10) == 0
    assert empty.rate == 0
    assert empty(0) == 0
