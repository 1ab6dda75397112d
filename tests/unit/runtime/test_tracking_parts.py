"""The tracker's parts that are only arithmetic: sets of addresses, instructions, registers."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.syscalls import MACHINE
from runtime.tracking import frame, gadgets, pagemap
from runtime.tracking.population import Frames, having, replaced
from runtime.tracking.ptrace import Registers
from runtime.tracking.ranges import common, merged, size, without

pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)))
_M64 = (1 << 64) - 1


def points(ranges: list[tuple[int, int]]) -> set[int]:
    return {at for start, end in ranges for at in range(start, end)}


def canonical(ranges: list[tuple[int, int]]) -> bool:
    return all(a < b for a, b in ranges) and all(
        a[1] < b[0] for a, b in zip(ranges, ranges[1:], strict=False)
    )


@given(pairs)
def test_merging_keeps_every_address_and_nothing_else(ranges):
    assert points(merged(ranges)) == points(ranges)
    assert canonical(merged(ranges))
    assert size(merged(ranges)) == len(points(ranges))


@given(pairs, pairs)
def test_difference_and_intersection_are_those_of_sets(left, right):
    a, b = merged(left), merged(right)
    assert points(without(a, b)) == points(a) - points(b)
    assert points(common(a, b)) == points(a) & points(b)
    assert without(a, b) == merged(without(a, b))


@given(st.lists(st.booleans(), max_size=40), st.sampled_from([1 << 1, 3 << 62, 1 << 55]))
def test_page_entries_become_ranges(flags, bits):
    set_bit = bits & -bits  # one of them is enough
    entries = array("Q", [set_bit if flag else ~bits & _M64 for flag in flags])
    found = having(entries, 0x1000 * 7, bits)
    assert canonical(found)
    pages = {at // 0x1000 for at in points([(a, b) for a, b in found]) if at % 0x1000 == 0}
    assert pages == {7 + n for n, flag in enumerate(flags) if flag}


_frames = st.lists(st.sampled_from([0, 1, 2, 5 << 40]), max_size=40)


@given(_frames, _frames, st.sets(st.integers(0, 39)), st.integers(0, 9), st.integers(0, 39))
def test_pages_in_another_frame_are_found_whatever_their_flags(was, now, swapped, shift, cut):
    flags = [pagemap.PRESENT | (n % 2) << 55 | (n % 3 == 0) << 61 for n in range(40)]

    def entry(n, frame):
        kind = pagemap.SWAPPED if n in swapped else flags[n]
        return frame and frame | kind

    before = array("Q", [frame and frame | pagemap.PRESENT for frame in was])
    after = array("Q", [entry(n, frame) for n, frame in enumerate(now)])
    start, later = 0x1000 * 7, 0x1000 * (7 + shift)
    # In two pieces, as mappings come and go.
    pieces = [Frames.of(before[:cut], start), Frames.of(before[cut:], start + cut * 0x1000)]
    found = replaced(pieces, [Frames.of(after, later)])
    assert canonical(found)
    old = {7 + n: frame for n, frame in enumerate(was)}
    assert {at // 0x1000 for at in points(found) if at % 0x1000 == 0} == {
        7 + shift + n
        for n, frame in enumerate(now)
        if old.get(7 + shift + n) not in (None, 0, frame) and not (frame and n in swapped)
    }


@pytest.mark.parametrize(
    ("code", "pops"),
    [
        ("0f05c3", 0),
        ("0f0531d231c931f631ff4531dbc3", 0),
        ("0f055dc3", 1),
        ("0f055b415cc3", 2),
        ("0f0531e4c3", None),  # would clear the stack pointer
        ("0f055cc3", None),  # would load it
        ("0f0590c3", None),
    ],
)
def test_a_call_is_found_only_where_it_returns(code, pops):
    match = gadgets._CALL.search(bytes.fromhex(code))
    assert (None if match is None else gadgets._pops(match)) == pops


@pytest.mark.parametrize(
    ("code", "way"),
    [
        ("4881c428010000c3", 0x128),
        ("4881c4300200005b415cc3", 0x240),
        ("4881c420010000c3", None),  # too near: the second frame would overlap the first
        ("4881c429010000c3", None),
        ("4881c428010100c3", None),  # too far
    ],
)
def test_a_skip_is_found_only_with_a_usable_way(code, way):
    match = gadgets._SKIP.search(bytes.fromhex(code))
    found = None
    if match is not None:
        found = int.from_bytes(match["way"], "little") + 8 * gadgets._pops(match)
    assert found == way


def stopped(rax: int, orig_rax: int) -> Registers:
    return Registers(rax=rax & _M64, orig_rax=orig_rax & _M64, rip=0x1002, rdi=5)


MOV_POLL = bytes.fromhex("b8070000000f05")


@pytest.mark.parametrize(
    ("registers", "text", "rax", "rip"),
    [
        (stopped(42, -1), b"", 42, 0x1002),  # it ran
        (stopped(42, 1), b"", 42, 0x1002),  # its call is over
        (stopped(-4, 1), b"", -4, 0x1002),
        (stopped(-512, 0), b"", 0, 0x1000),
        (stopped(-513, 0), b"", 0, 0x1000),
        (stopped(-514, 130), b"", 130, 0x1000),
        (stopped(-516, 7), b"", 7, 0x1000),
        (stopped(-516, 219), MOV_POLL, 7, 0x1000),
        (stopped(-516, 219), b"\x0f\x05", -4, 0x1002),
        (stopped(-516, 219), bytes.fromhex("b8010000000f05"), -4, 0x1002),  # not one of those
    ],
)
def test_an_interrupted_call_is_made_again(registers, text, rax, rip):
    values = frame.resumable(registers, text)
    assert values.rax == rax & _M64
    assert values.rip == rip
    assert values.rdi == 5


def test_both_frames_lie_apart_and_are_recognised():
    found = gadgets.Gadgets(call=0x100, pops=0, restore=0x200, skip=0x300, way=0x128)
    state = bytearray(2696)
    state[464:472] = (0x2E7).to_bytes(8, "little")
    made = frame.build(0x10000, stopped(-514, 7), 0, bytes(state), found, b"")
    assert made.data.count((0x200).to_bytes(8, "little")) == 2
    assert frame.is_frame(made.data, found)
    assert not frame.is_frame(bytes(len(made.data)), found)
    assert made.parked.orig_rax == 15
    assert made.parked.rsp == 0x10008


def test_vector_state_that_is_too_large_is_refused():
    found = gadgets.Gadgets(call=0x100, pops=0, restore=0x200, skip=0x300, way=0x128)
    state = bytearray(32768)
    state[464:472] = ((1 << 18) | 7).to_bytes(8, "little")
    with pytest.raises(frame.Unbuildable):
        frame.build(0x10000, stopped(0, -1), 0, bytes(state), found, b"")


pytestmark = pytest.mark.skipif(MACHINE != "x86_64", reason="x86-64 only")
