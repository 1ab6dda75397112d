"""Page maps on their way to a restore whose pages come from elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.errors import BadInput, Corrupt
from images.lazy_entries import plan_lazy, rewrite_lazy, task_of
from images.pages import (
    LAZY,
    PAGE,
    PARENT,
    PRESENT,
    PageMap,
    PageRun,
    build_page_map,
    parse_page_map,
)


def page_map(*runs: tuple[int, int, int]) -> PageMap:
    """From (page, pages, flags)."""
    return PageMap(7, tuple(PageRun(page * PAGE, pages, flags) for page, pages, flags in runs))


def ranges(*pages: tuple[int, int]) -> list[tuple[int, int]]:
    return [(first * PAGE, last * PAGE) for first, last in pages]


def in_pages(plan_map: PageMap) -> list[tuple[int, int, int]]:
    return [(run.address // PAGE, run.pages, run.flags) for run in plan_map.runs]


def test_each_carried_range_gets_one_entry() -> None:
    plan = plan_lazy(page_map((100, 3, PRESENT)), ranges((10, 20), (20, 30), (200, 201)))
    assert in_pages(plan.page_map) == [(10, 20, LAZY), (100, 3, PRESENT), (200, 1, LAZY)]
    assert plan.page_map.pages_id == 7 and plan.fetch == ()


def test_pages_that_criu_dumped_stay_inside_a_carried_range() -> None:
    plan = plan_lazy(page_map((14, 2, PRESENT)), ranges((10, 20)))
    assert in_pages(plan.page_map) == [(10, 4, LAZY), (14, 2, PRESENT), (16, 4, LAZY)]


def test_lazy_pages_that_nobody_carries_have_to_be_fetched() -> None:
    plan = plan_lazy(page_map((5, 2, LAZY), (7, 1, PRESENT), (8, 4, LAZY)), ranges((10, 20)))
    assert plan.fetch == tuple(ranges((5, 7), (8, 10)))
    assert plan.fetch_bytes == 4 * PAGE
    assert in_pages(plan.page_map) == [(5, 2, LAZY), (7, 1, PRESENT), (8, 12, LAZY)]


@pytest.mark.parametrize("flags", [PARENT, 0, PARENT | LAZY, PRESENT | LAZY])
def test_what_no_lazy_dump_writes_is_refused(flags: int) -> None:
    with pytest.raises(Corrupt):
        plan_lazy(page_map((1, 1, flags)), [])


@pytest.mark.parametrize("bad", [(1, PAGE), (PAGE, PAGE), (2 * PAGE, PAGE), (-PAGE, PAGE)])
def test_carried_ranges_are_ranges_of_pages(bad: tuple[int, int]) -> None:
    with pytest.raises(BadInput):
        plan_lazy(page_map(), [bad])


def test_an_image_is_rewritten_for_criu() -> None:
    image = build_page_map(3, page_map((1, 1, PRESENT)).runs)
    rewritten = parse_page_map(
        rewrite_lazy("pagemap-1.img", ranges((4, 5)))(image), "pagemap-1.img"
    )
    assert rewritten.pages_id == 3
    assert in_pages(rewritten) == [(1, 1, PRESENT), (4, 1, LAZY)]


def test_only_page_maps_of_tasks_are_meant() -> None:
    assert task_of("pagemap-12.img") == 12
    assert task_of("pagemap-shmem-12.img") is None
    assert task_of("pages-12.img") is None


PAGES = st.integers(0, 60)


@given(
    present=st.sets(PAGES), lazy=st.sets(PAGES), carried=st.sets(PAGES)
)  # fmt: skip
def test_every_page_has_one_entry_of_the_right_kind(
    present: set[int], lazy: set[int], carried: set[int]
) -> None:
    lazy -= present
    runs = sorted([(page, 1, PRESENT) for page in present] + [(page, 1, LAZY) for page in lazy])
    plan = plan_lazy(page_map(*runs), [(page * PAGE, page * PAGE + PAGE) for page in carried])
    found: dict[int, int] = {}
    last = -1
    for page, count, flags in in_pages(plan.page_map):
        assert page > last
        last = page + count - 1
        found |= dict.fromkeys(range(page, page + count), flags)
    wanted = dict.fromkeys(lazy | carried, LAZY) | dict.fromkeys(present, PRESENT)
    assert found == wanted
    fetched = {page for start, end in plan.fetch for page in range(start // PAGE, end // PAGE)}
    assert fetched == lazy - carried
