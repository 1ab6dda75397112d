"""The arithmetic of what an address space still needs, against a page table."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.pager.pending import Pending

SIZE = 40
PLACE = st.integers(0, SIZE - 1)
LENGTH = st.integers(1, 12)
STEP = st.one_of(
    st.tuples(st.just("remove"), PLACE, PLACE, LENGTH),
    st.tuples(st.just("move"), PLACE, PLACE, LENGTH),
)


def table(pending: Pending) -> dict[int, int]:
    """Page -> where its content lies."""
    found: dict[int, int] = {}
    for start, end, shift in pending.ranges():
        for page in range(start, end):
            assert page not in found
            found[page] = page + shift
    return found


@given(
    pages=st.sets(PLACE),
    steps=st.lists(STEP, max_size=12),
)
def test_ranges_behave_as_pages(pages: set[int], steps: list[tuple[str, int, int, int]]) -> None:
    pending = Pending((page, page + 1) for page in sorted(pages))
    model = {page: page for page in pages}
    for what, source, target, length in steps:
        if what == "remove":
            pending.remove(source, source + length)
            model = {p: c for p, c in model.items() if not source <= p < source + length}
        elif abs(source - target) >= length:  # mremap refuses overlaps
            pending.move(source, target, length)
            moving = {p: c for p, c in model.items() if source <= p < source + length}
            model = {
                p: c
                for p, c in model.items()
                if p not in moving and not target <= p < target + length
            }
            model |= {p - source + target: c for p, c in moving.items()}
        assert table(pending) == model
        assert pending.size == len(model)
        starts = [start for start, _, _ in pending.ranges()]
        assert starts == sorted(starts)
        for page in range(SIZE + 12):
            found = pending.find(page)
            assert (found is not None) == (page in model)
            if found is not None:
                assert found[0] == page and found[0] + found[2] == model[page]
            first = pending.first(page)
            later = sorted(p for p in model if p >= page) or sorted(model)
            assert (first[0] if first else None) == (later[0] if later else None)


def test_neighbours_with_one_shift_are_one_range() -> None:
    pending = Pending([(0, 2), (2, 4)])
    assert pending.ranges() == [(0, 4, 0)]


def test_a_copy_is_its_own() -> None:
    pending = Pending([(0, 4)])
    child = pending.copy()
    pending.remove(0, 4)
    assert not pending and child.ranges() == [(0, 4, 0)]
