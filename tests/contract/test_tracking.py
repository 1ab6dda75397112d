"""Every tracker finds every page that was written, whatever the program does to its memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime import proc
from runtime.errors import NotFound
from runtime.syscalls import MACHINE
from runtime.tracking import pagemap, wp_async
from runtime.tracking.compare import Compare
from runtime.tracking.pagemap import PAGE
from runtime.tracking.population import opened, populated
from runtime.tracking.ranges import common, size
from runtime.tracking.soft_dirty import SoftDirty
from runtime.tracking.tracker import Tracker
from runtime.tracking.vmas import anonymous, mappings, programs
from runtime.tracking.wp_async import WpAsync
from tests import needs
from tests.contract.tracking_programs import Churn, Copy

pytestmark = [
    needs.root,
    needs.compiler,
    pytest.mark.skipif(MACHINE != "x86_64", reason="the programs are for x86-64"),
]

MIB = 1 << 20
# Those that this host has: a kernel without soft-dirty bits has nothing to test.
TRACKERS: list[Callable[..., Tracker]] = [Compare]
if wp_async.supported():
    TRACKERS.append(WpAsync)
if pagemap.supports_soft_dirty():
    TRACKERS.append(SoftDirty)


@pytest.fixture(params=TRACKERS, ids=lambda kind: kind.name)
def tracker(request: pytest.FixtureRequest) -> Iterator[Tracker]:
    made = request.param(anonymous)
    yield made
    made.stop()


@pytest.fixture
def everything(request: pytest.FixtureRequest, tracker: Tracker) -> Iterator[Tracker]:
    """The same kind, asked for all that a program can write: shared memory and files, too."""
    made = type(tracker)(programs)  # type: ignore[call-arg]
    yield made
    made.stop()


def begun(tracker: Tracker, program: Churn) -> Copy:
    tracker.start([program.pid])
    copy = Copy(tracker, program.pid)
    copy.follow()
    assert tracker.why_all(program.pid) == ""
    return copy


def test_the_first_answer_is_everything_there_is(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    assert copy.differences() == []
    assert any(vma.start <= at < vma.end for vma in tracker.vmas(program.pid))


def test_written_pages_are_found_and_others_are_not(tracker, program):
    at = program.map("small", 4 * MIB)
    program.do("write", at, 4 * MIB, 1)
    copy = begun(tracker, program)
    copy.follow()  # the stack and buffers of the last command
    for page in (0, 5, 6, 7, 700, 1023):
        program.do("touch", at + page * PAGE)
    found = common(copy.follow(), [(at, at + 4 * MIB)])
    assert found == [
        (at, at + PAGE),
        (at + 5 * PAGE, at + 8 * PAGE),
        (at + 700 * PAGE, at + 701 * PAGE),
        (at + 1023 * PAGE, at + 4 * MIB),
    ]
    assert copy.differences() == []


def test_each_answer_begins_anew(tracker, program):
    at = program.map("small", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    program.do("touch", at)
    assert size(common(copy.follow(), [(at, at + MIB)])) == PAGE
    assert common(copy.follow(), [(at, at + MIB)]) == []
    program.do("touch", at)
    assert size(common(copy.follow(), [(at, at + MIB)])) == PAGE


def test_first_writes_to_untouched_memory_are_found(tracker, program):
    at = program.map("anon", 4 * MIB)
    copy = begun(tracker, program)
    program.do("write", at + MIB, MIB, 2)
    assert size(common(copy.follow(), [(at + MIB, at + 2 * MIB)])) == MIB
    assert copy.differences() == []


def test_what_the_kernel_writes_for_the_program_is_found(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    program.do("kernel", at + 16 * PAGE, 8 * PAGE)
    copy.follow()
    assert copy.differences() == []


def test_memory_given_back_is_a_change_to_zeros(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    program.do("free", at + 32 * PAGE, 64 * PAGE)
    copy.follow()
    assert copy.differences() == []
    assert copy.pages.get(at + 40 * PAGE, bytes(PAGE)) == bytes(PAGE)
    # given back, then read: a zero page appears
    program.do("free", at, 16 * PAGE)
    program.do("read", at)
    copy.follow()
    assert copy.differences() == []


def test_a_huge_page_given_back_and_read_is_a_change_to_zeros(tracker, program):
    """The kernel has a huge page of zeros for that, which nobody wrote either."""
    at = program.map("huge", 4 * MIB)
    program.do("write", at, 4 * MIB, 1)
    copy = begun(tracker, program)
    program.do("free", at, 2 * MIB)
    program.do("read", at)
    copy.follow()
    assert copy.differences() == []


def test_memory_given_back_and_written_again_is_found(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    program.do("free", at, MIB)
    program.do("write", at + 8 * PAGE, 8 * PAGE, 5)
    copy.follow()
    assert copy.differences() == []
    program.do("free", at + 8 * PAGE, PAGE)
    copy.follow()
    assert copy.differences() == []


def test_a_new_mapping_in_the_place_of_an_old_one_is_found(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    program.do("map-at", at, MIB)
    copy.follow()
    assert copy.differences() == []
    program.do("unmap", at, MIB)
    program.do("map-at", at, MIB)
    program.do("write", at, 4 * PAGE, 9)
    copy.follow()
    assert copy.differences() == []


def test_a_hole_filled_by_another_mapping_is_found(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    program.do("map-at", at + 64 * PAGE, 64 * PAGE)
    program.do("write", at + 70 * PAGE, PAGE, 3)
    program.do("touch", at)
    copy.follow()
    assert copy.differences() == []


def test_moved_memory_is_found_and_followed_in_its_new_place(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    there = program.do("move", at, MIB, MIB)
    assert there != at
    copy.follow()
    assert copy.differences() == []
    program.do("touch", there + 3 * PAGE)
    copy.follow()
    assert copy.differences() == []


def test_memory_that_moves_and_is_written_between_is_found(tracker, program):
    """A moved page may carry a mark of its former place, which must not hide a later write."""
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    for seed in range(2, 6):
        at = program.do("move", at, MIB, MIB)
        if seed % 2:
            program.do("write", at, MIB // 2, seed)
        copy.follow()
        program.do("write", at + MIB // 4, MIB // 2, seed + 100)
        copy.follow()
        assert copy.differences() == []


def test_a_mapping_that_grows_is_found(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    there = program.do("move", at, MIB, 3 * MIB)
    program.do("write", there + 2 * MIB, 16 * PAGE, 4)
    program.do("touch", there + 7 * PAGE)
    copy.follow()
    assert copy.differences() == []


def test_the_heap_and_the_stack_may_grow(tracker, program):
    copy = begun(tracker, program)
    old = program.do("grow", MIB)
    program.do("write", (old + PAGE) & -PAGE, 64 * PAGE, 2)
    copy.follow()
    assert copy.differences() == []
    for kib in (100, 600):
        program.do("stack", kib)
        copy.follow()
        assert copy.differences() == []


def test_memory_without_access_is_followed_through_its_changes(tracker, program):
    at = program.map("guard", MIB)
    copy = begun(tracker, program)
    program.do("protect", at, MIB, 3)
    program.do("write", at, 32 * PAGE, 6)
    program.do("protect", at, MIB, 0)
    copy.follow()
    assert copy.differences() == []
    # written between two looks, and inaccessible at both
    program.do("protect", at + 8 * PAGE, 8 * PAGE, 3)
    program.do("write", at + 8 * PAGE, PAGE, 7)
    program.do("protect", at + 8 * PAGE, 8 * PAGE, 0)
    copy.follow()
    assert copy.differences() == []


def test_transparent_huge_pages_are_tracked(tracker, program):
    at = program.map("huge", 8 * MIB)
    program.do("write", at, 8 * MIB, 1)
    copy = begun(tracker, program)
    program.do("touch", at + 3 * MIB)
    program.do("free", at + 4 * MIB, 2 * MIB + 5 * PAGE)
    copy.follow()
    assert copy.differences() == []


def test_pages_that_were_swapped_out_lose_nothing(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    program.do("touch", at)
    program.do("swap-out", at, MIB)
    copy.follow()
    program.do("touch", at + PAGE)
    copy.follow()
    assert copy.differences() == []


def test_threads_writing_at_once_are_all_seen(tracker, program):
    at = program.map("anon", 2 * MIB)
    program.do("write", at, 2 * MIB, 1)
    copy = begun(tracker, program)
    program.do("threads", 8, at, 2 * MIB)
    copy.follow()
    assert copy.differences() == []


def test_asking_while_the_program_writes_loses_nothing(tracker, program):
    at = program.map("anon", 2 * MIB)
    program.do("write", at, 2 * MIB, 1)
    copy = begun(tracker, program)

    def write() -> None:
        for seed in range(40):
            program.do("threads", 4, at, 2 * MIB)
            program.do("write", at + seed * PAGE, MIB, seed)

    writer = threading.Thread(target=write)
    writer.start()
    rounds = 0
    while writer.is_alive():
        copy.follow()
        rounds += 1
    writer.join()
    copy.follow()
    assert rounds > 0
    assert copy.differences() == []


def test_a_forked_child_is_a_process_of_its_own_and_the_parent_stays_tracked(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    parent = begun(tracker, program)
    child_pid = program.do("fork", at, MIB // 2)
    child = Copy(tracker, child_pid)
    child.follow()
    program.do("touch", at + 9 * PAGE)
    parent.follow()
    child.follow()
    assert parent.differences() == []
    assert child.differences() == []
    other = program.do("fork-write", at, 16 * PAGE)
    parent.follow()
    assert parent.differences() == []
    assert other != child_pid


def test_a_process_that_ended_is_not_found(tracker, program):
    begun(tracker, program)
    child = program.do("fork", program.map("anon", MIB), MIB)
    assert tracker.dirty(child)
    program.do("end-child")
    with pytest.raises(NotFound):
        tracker.dirty(child)
    with pytest.raises(NotFound):
        tracker.dirty(child)


def test_a_program_that_executes_another_is_begun_with_anew(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    program.do("exec")
    copy.follow()
    assert copy.differences() == []
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 4)
    copy.follow()
    program.do("touch", at + PAGE)
    copy.follow()
    assert copy.differences() == []


def test_a_vfork_in_between_changes_nothing(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = begun(tracker, program)
    program.do("vfork-exec")
    program.do("touch", at)
    copy.follow()
    assert copy.differences() == []


def test_shared_memory_is_never_guessed(everything, program):
    shared = program.map("shared", MIB)
    program.do("write", shared, MIB, 1)
    copy = begun(everything, program)
    # Somebody else writes to it, and is gone before anybody looks.
    program.do("fork", shared + 16 * PAGE, PAGE)
    program.do("end-child")
    copy.follow()
    assert copy.differences() == []


def test_of_a_file_s_private_mapping_what_was_written_is_found_and_what_is_given_back(
    everything, program
):
    at = program.map("file", 4 * PAGE)
    program.do("read", at + PAGE)
    program.do("touch", at)
    copy = begun(everything, program)
    found = common(copy.follow(), [(at, at + 4 * PAGE)])
    assert found == []
    for page in (1, 3):  # one that was read before, one that never was
        program.do("touch", at + page * PAGE)
    found = common(copy.follow(), [(at, at + 4 * PAGE)])
    assert found == [(at + PAGE, at + 2 * PAGE), (at + 3 * PAGE, at + 4 * PAGE)]
    assert copy.differences() == []
    # Given back, given back and read, given back and written again: to the same bytes, and to others.
    for after in ((), ("read",), ("touch",), ("touch", "touch")):
        program.do("free", at, 2 * PAGE)
        for step in after:
            program.do(step, at)
        copy.follow(frozen=len(after) == 1)
        assert copy.differences() == []
        program.do("touch", at + PAGE)
        copy.follow()
        assert copy.differences() == []
    pid = program.do("fork", at, 2 * PAGE)
    while proc.state(pid) != "S":  # it has written when it waits
        time.sleep(0)
    child = Copy(everything, pid)
    child.follow()
    copy.follow()
    assert child.differences() == copy.differences() == []
    again = program.do("move", at, 4 * PAGE, 4 * PAGE)
    program.do("touch", again + 2 * PAGE)
    copy.follow()
    assert copy.differences() == []


def test_in_the_frozen_window_a_new_process_is_simply_dirty(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    copy = Copy(tracker, program.pid)
    copy.follow(frozen=True)
    assert copy.differences() == []
    program.do("touch", at)
    copy.follow(frozen=True)
    assert copy.differences() == []


def test_after_the_end_the_program_is_as_it_was(tracker, program):
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    descriptors = os.listdir(f"/proc/{program.pid}/fd")
    before = [(v.start, v.end, v.permissions) for v in mappings(program.pid)]
    begun(tracker, program)
    tracker.stop()
    tracker.stop()
    assert os.listdir(f"/proc/{program.pid}/fd") == descriptors
    assert [(v.start, v.end, v.permissions) for v in mappings(program.pid)] == before
    status = Path(f"/proc/{program.pid}/status").read_text()
    assert "TracerPid:\t0" in status
    program.do("touch", at)
    again = type(tracker)(anonymous)  # type: ignore[call-arg]
    try:
        copy = begun(again, program)
        program.do("touch", at)
        assert size(common(copy.follow(), [(at, at + MIB)])) == PAGE
    finally:
        again.stop()


def test_a_process_without_memory_has_nothing_dirty(tracker):
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    try:
        assert tracker.dirty(child.pid) == []
    except NotFound:
        pass
    finally:
        child.wait()


def test_populated_memory_is_told_from_reserved(program):
    at = program.map("small", 64 * MIB)
    program.do("write", at + 8 * MIB, 16 * PAGE, 1)
    with opened(program.pid) as fd:
        assert populated(fd, [(at, at + 64 * MIB)]) == [(at + 8 * MIB, at + 8 * MIB + 16 * PAGE)]
