"""Page maps: what they add up to, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images.errors import Corrupt, ImageFault, Truncated
from images.pages import (
    LAZY,
    PAGE,
    PARENT,
    PRESENT,
    PageMap,
    PageRun,
    build_page_map,
    parse_page_map,
    read_page_map,
)
from tests import needs

pytestmark = needs.pycriu

RUNS = (
    PageRun(0x10000, 2, PRESENT),
    PageRun(0x12000, 1, LAZY),
    PageRun(0x20000, 4, PRESENT | LAZY),
    PageRun(0x30000, 1, PARENT),
    PageRun(0x40000, 1 << 33, LAZY),
)


def test_a_page_map_comes_back_as_it_was() -> None:
    assert parse_page_map(build_page_map(7, RUNS), "p") == PageMap(7, RUNS)
    assert parse_page_map(build_page_map(1, ()), "p") == PageMap(1, ())


def test_crius_own_tools_read_what_is_built() -> None:
    from pycriu import images

    loaded = images.loads(build_page_map(7, RUNS[:1]))
    assert loaded["magic"] == "PAGEMAP"
    assert loaded["entries"][0] == {"pages_id": 7}
    assert (loaded["entries"][1]["vaddr"], loaded["entries"][1]["nr_pages"]) == (0x10000, 2)


def test_bytes_are_counted_by_where_they_are() -> None:
    page_map = PageMap(1, RUNS)
    assert page_map.bytes_of(PRESENT) == 6 * PAGE
    assert page_map.bytes_of(LAZY) == ((1 << 33) + 1) * PAGE
    assert page_map.bytes_of(PARENT) == PAGE


@given(st.integers(0, 100), st.integers(0, 100))
def test_bytes_within_are_those_of_the_pages_within(a: int, b: int) -> None:
    start, end = sorted((a, b))
    held = {n for run in RUNS if run.state == PRESENT for n in range(run.address, run.end, PAGE)}
    low, high = (n * PAGE for n in (start, end))
    expected = sum(PAGE for n in held if low <= n < high)
    assert PageMap(1, RUNS).bytes_within(low, high, PRESENT) == expected


def test_the_page_data_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "pagemap-1.img").write_bytes(build_page_map(3, RUNS))
    with pytest.raises(Corrupt, match=r"pages-3\.img: it is missing"):
        read_page_map(str(tmp_path), "pagemap-1.img")
    (tmp_path / "pages-3.img").write_bytes(bytes(6 * PAGE - 1))
    with pytest.raises(Truncated, match=r"pages-3\.img"):
        read_page_map(str(tmp_path), "pagemap-1.img")
    (tmp_path / "pages-3.img").write_bytes(bytes(6 * PAGE))
    assert read_page_map(str(tmp_path), "pagemap-1.img").runs == RUNS


def test_every_cut_is_found_but_between_entries() -> None:
    data = build_page_map(7, RUNS)
    whole = [
        length
        for length in range(len(data))
        if not raises(lambda n=length: parse_page_map(data[:n], "p"))
    ]
    assert len(whole) == len(RUNS)  # after the head and after each entry but the last


def raises(action: object) -> bool:
    try:
        action()  # type: ignore[operator]
    except Corrupt:
        return True
    return False


@given(st.binary(max_size=100))
def test_garbage_is_corrupt_or_a_page_map(tail: bytes) -> None:
    for data in (tail, build_page_map(7, ())[:8] + tail):
        try:
            parse_page_map(data, "p")
        except ImageFault as fault:
            assert isinstance(fault, Corrupt) and "\n" not in str(fault)


@pytest.mark.parametrize(
    "runs",
    [
        [PageRun(1, 1, PRESENT)],
        [PageRun(0x20000, 1, PRESENT), PageRun(0x10000, 1, PRESENT)],
        [PageRun(0x10000, 2, PRESENT), PageRun(0x11000, 1, PRESENT)],
        [PageRun(0x10000, 1 << 60, PRESENT)],
    ],
)
def test_addresses_out_of_order_are_refused(runs: list[PageRun]) -> None:
    with pytest.raises(Corrupt, match="order"):
        parse_page_map(build_page_map(1, runs), "p")
