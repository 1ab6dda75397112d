"""The page map of a checkpoint whose pages come from CRIU and from a copy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.errors import Corrupt
from images.pages import LAZY, PAGE, PARENT, PRESENT, PageMap, PageRun
from images.whole_entries import Piece, pieces, runs

BOTH = PRESENT | LAZY


def page_map(*found: tuple[int, int, int]) -> PageMap:
    """From (page, pages, flags)."""
    return PageMap(7, tuple(PageRun(page * PAGE, pages, flags) for page, pages, flags in found))


def whole(dumped: PageMap, *carried: tuple[int, int]) -> list[tuple[int, int, bool]]:
    found = pieces(dumped, [(first * PAGE, last * PAGE) for first, last in carried])
    return [(one.start // PAGE, one.end // PAGE, one.dumped) for one in found]


def test_pieces_come_in_the_order_of_addresses() -> None:
    dumped = page_map((1, 2, PRESENT), (10, 1, BOTH), (90, 5, PRESENT))
    assert whole(dumped, (3, 10), (20, 30)) == [
        (1, 3, True),
        (3, 10, False),
        (10, 11, True),
        (20, 30, False),
        (90, 95, True),
    ]


@pytest.mark.parametrize("flags", [PARENT, LAZY, PARENT | PRESENT, 0])
def test_pages_that_are_elsewhere_are_refused(flags: int) -> None:
    with pytest.raises(Corrupt, match="elsewhere"):
        whole(page_map((1, 1, flags)))


def test_a_page_from_both_is_refused() -> None:
    with pytest.raises(Corrupt, match="dumped nevertheless"):
        whole(page_map((5, 2, BOTH)), (1, 6))
    with pytest.raises(Corrupt, match="dumped nevertheless"):
        whole(page_map((5, 9, BOTH)), (6, 7))


@given(st.lists(st.sampled_from("-dDc"), max_size=60))
def test_entries_say_for_each_page_what_it_is(kinds: list[str]) -> None:
    """d: dumped; D: dumped, could be lazy; c: carried."""
    flags = {"d": PRESENT, "D": BOTH, "c": BOTH}
    dumped = page_map(*((n, 1, flags[kind]) for n, kind in enumerate(kinds) if kind in "dD"))
    carried = [(n * PAGE, (n + 1) * PAGE) for n, kind in enumerate(kinds) if kind == "c"]
    made = list(runs(pieces(dumped, carried)))
    found = {run.address // PAGE + page: run.flags for run in made for page in range(run.pages)}
    assert found == {n: flags[kind] for n, kind in enumerate(kinds) if kind != "-"}
    for before, after in zip(made, made[1:], strict=False):
        assert before.end < after.address or before.flags != after.flags


def test_no_pages_make_no_entries() -> None:
    assert list(runs([])) == []
    assert list(runs([Piece(PAGE, 3 * PAGE, PRESENT, True)])) == [PageRun(PAGE, 2, PRESENT)]
