"""A scan around hidden ranges is the kernel's own on memory in which they are empty."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Unsupported
from runtime.veil import scan
from runtime.veil.filter import IOCTLS, program
from runtime.veil.scan import ARG, PAGE, REGION, Result, Scan, Scanner, scan_around
from runtime.veil.veil import checked

pytestmark = pytest.mark.skipif(not scan.supported(), reason="no PAGEMAP_SCAN")

PRESENT_OR_SWAPPED = scan.PAGE_IS_PRESENT | scan.PAGE_IS_SWAPPED


def asked(start: int, end: int, vec_len: int, max_pages: int = 0) -> Scan:
    """As CRIU asks, with a vector somewhere."""
    raw = ARG.pack(
        ARG.size,
        0,
        start,
        end,
        0,
        1,
        vec_len,
        max_pages,
        0,
        0,
        PRESENT_OR_SWAPPED,
        PRESENT_OR_SWAPPED,
    )
    return Scan(raw)


def regions(result: Result) -> list[tuple[int, int]]:
    return [(start, end) for start, end, _ in REGION.iter_unpack(result.regions)]


def fake(populated: set[int], most: int = 1000):  # type: ignore[no-untyped-def]
    """The kernel's rules on pages 0.. of which some are populated; a vector of at most `most` regions."""

    def really(start: int, end: int, vec_len: int, max_pages: int) -> Result:
        out: list[list[int]] = []
        pages = 0
        page = start // PAGE
        while page < end // PAGE:
            if page in populated:
                if max_pages and pages == max_pages:
                    break
                if out and out[-1][1] == page * PAGE:
                    out[-1][1] += PAGE
                elif len(out) == min(vec_len, most):
                    break
                else:
                    out.append([page * PAGE, page * PAGE + PAGE])
                pages += 1
            page += 1
        return Result(b"".join(REGION.pack(*pair, 8) for pair in out), page * PAGE)

    return really


@given(
    populated=st.sets(st.integers(0, 80)),
    hidden=st.sets(st.integers(0, 80)),
    start=st.integers(0, 40),
    length=st.integers(0, 45),
    vec_len=st.integers(1, 6),
    max_pages=st.integers(0, 9),
    most=st.integers(1, 3),
)
def test_asking_until_the_end_finds_everything_but_the_hidden(
    populated: set[int],
    hidden: set[int],
    start: int,
    length: int,
    vec_len: int,
    max_pages: int,
    most: int,
) -> None:
    away = checked([(page * PAGE, page * PAGE + PAGE) for page in hidden])
    at, end = start * PAGE, (start + length) * PAGE
    found: set[int] = set()
    for _ in range(200):
        result = scan_around(asked(at, end, vec_len, max_pages), away, fake(populated, most))
        assert result.count <= vec_len
        assert not max_pages or result.pages() <= max_pages
        assert at <= result.walk_end <= end
        for first, last in regions(result):
            assert at <= first < last <= result.walk_end
            pages = set(range(first // PAGE, last // PAGE))
            assert not pages & found
            found |= pages
        assert result.walk_end > at or at == end, "no progress"
        at = result.walk_end
        if at == end:
            break
    assert found == {page for page in populated - hidden if start <= page < start + length}


@given(
    populated=st.sets(st.integers(0, 30)), vec_len=st.integers(1, 5), max_pages=st.integers(0, 6)
)
def test_nothing_hidden_is_the_plain_ioctl(
    populated: set[int], vec_len: int, max_pages: int
) -> None:
    really = fake(populated)
    ours = scan_around(asked(0, 31 * PAGE, vec_len, max_pages), (), really)
    theirs = really(0, 31 * PAGE, vec_len, max_pages)
    assert regions(ours) == regions(theirs)


def test_the_real_ioctl_is_understood() -> None:
    memory = mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, 1, 2, 10, 20, 21, 40, 63):
        memory[page * PAGE] = 1
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        scanner = Scanner()

        def around(hidden: list[tuple[int, int]], vec_len: int = 100) -> list[tuple[int, int]]:
            want = asked(start, start + 64 * PAGE, vec_len)
            away = [(start + a * PAGE, start + b * PAGE) for a, b in hidden]
            result = scan_around(want, away, lambda *args: scanner(pagemap, want, *args))
            return [((a - start) // PAGE, (b - start) // PAGE) for a, b in regions(result)]

        assert around([]) == [(0, 3), (10, 11), (20, 22), (40, 41), (63, 64)]
        assert around([(1, 21)]) == [(0, 1), (21, 22), (40, 41), (63, 64)]
        assert around([(0, 64)]) == []
        assert around([(5, 6)], vec_len=2) == [(0, 3), (10, 11)]
    finally:
        os.close(pagemap)


def test_guard_regions_are_not_hidden() -> None:
    guards = ARG.pack(ARG.size, 0, 0, 1 << 47, 0, 1, 1000, 0, 0, 1 << 8, 0, 1 << 8)
    assert not Scan(guards).wants_content
    assert asked(0, PAGE, 1).wants_content


def test_a_kernel_without_the_ioctl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert not scan.supported()


@pytest.mark.parametrize("machine", sorted(IOCTLS))
def test_the_filter_catches_that_ioctl_and_nothing_else(machine: str) -> None:
    arch, number = IOCTLS[machine]
    code = program(machine)

    def run(nr: int, audit: int, command: int) -> int:
        data = struct.pack("=iIQ6Q", nr, audit, 0, 3, command, 0, 0, 0, 0)
        at, loaded = 0, 0
        while True:
            op, yes, no, k = struct.unpack_from("=HBBI", code, at * 8)
            if op == 0x20:
                (loaded,) = struct.unpack_from("=I", data, k)
            elif op == 0x15:
                at += yes if loaded == k else no
            else:
                return int(k)
            at += 1

    notify, allow = 0x7FC00000, 0x7FFF0000
    assert run(number, arch, scan.PAGEMAP_SCAN) == notify
    assert run(number, arch, scan.PAGEMAP_SCAN | 1 << 40) == notify  # the kernel looks at 32 bits
    assert run(number, arch, 0x5401) == allow
    assert run(number + 1, arch, scan.PAGEMAP_SCAN) == allow
    assert run(number, 0x40000003, scan.PAGEMAP_SCAN) == allow


def test_an_unknown_machine_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        program("riscv64")


def test_ranges_to_hide_are_checked() -> None:
    assert checked([(2 * PAGE, 3 * PAGE), (0, 2 * PAGE)]) == ((0, 3 * PAGE),)
    for bad in [(1, PAGE), (PAGE, PAGE), (2 * PAGE, PAGE)]:
        with pytest.raises(ValueError, match="range"):
            checked([bad])
