"""What is carried of a process is what the process has, whatever it does to its memory, and whoever tracks it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from ckpt.ops.carry import Carrier
from ckpt.ops.convergence import Limits
from runtime.errors import BadInput
from runtime.pagecache.store import PageStore
from runtime.pagesource.receive import PageReceiver
from runtime.pagesource.send import PageSender
from runtime.pagesource.wire import COPIES_FROM
from runtime.syscalls import MACHINE
from runtime.tracking import choose, pagemap, population, wp_async
from runtime.tracking.pagemap import PAGE
from runtime.tracking.ranges import without
from runtime.tracking.vmas import mappings
from runtime.veil.carry import LEAST_COPIED, is_candidate, is_copied
from tests import needs
from tests.contract.tracking_programs import Churn

pytestmark = [
    needs.root,
    needs.compiler,
    pytest.mark.skipif(MACHINE != "x86_64", reason="the programs are for x86-64"),
]

MIB = 1 << 20
TRACKERS = ["compare"]
if wp_async.supported():
    TRACKERS.append("wp-async")
if pagemap.supports_soft_dirty():
    TRACKERS.append("soft-dirty")


class Carried:
    """A process whose memory is carried through a pipe into a store, a round at a time."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._store = PageStore()
        self._out, self._into = os.pipe()
        self._receiver = PageReceiver(self._out, self._store)
        self._sender = PageSender(self._into)
        self.carrier = Carrier(self._sender, lambda: [pid], limits=Limits(), copies=True)

    def close(self) -> None:
        with self.carrier:
            pass
        os.close(self._out)
        os.close(self._into)
        self._store.close()

    def round(self, *, frozen: bool = False) -> int:
        """Pages that travelled, of any kind."""
        arriving = threading.Thread(target=self._receiver.until_mark)
        arriving.start()
        before = self._told
        try:
            step = self.carrier.last if frozen else self.carrier.once_more
            step(lambda: None)
        finally:
            self._sender.mark()
            self._sender.flush()
            arriving.join()
        return self._told - before

    @property
    def _told(self) -> int:
        counts = self._sender.counts
        return counts.pages + counts.zeros + counts.same

    def differences(self) -> list[int]:
        """Pages that are not there as the process has them; the process must not run."""
        pages = self._store[self._pid]
        found = []
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            for vma in filter(is_candidate, mappings(self._pid)):
                for page in range(vma.start, vma.end, PAGE):
                    try:
                        memory.seek(page)
                        now = memory.read(PAGE)
                    except OSError:
                        continue
                    if now != os.pread(pages.fd, PAGE, page):
                        found.append(page)
            found += self._differing_copies(memory)
        return found

    def _differing_copies(self, memory: BinaryIO) -> list[int]:
        """Of files that are mapped privately: exactly what was written, and nothing of the file's."""
        held = self._store[COPIES_FROM + self._pid]
        files = [(vma.start, vma.end) for vma in mappings(self._pid) if is_copied(vma)]
        with population.opened(self._pid) as pagemap:
            wanted = population.copies(pagemap, files)
        found = [start for start, _ in without(wanted, list(held.runs()))]
        found += [start for start, _ in without(list(held.runs()), wanted)]
        for page in (at for start, end in wanted for at in range(start, end, PAGE)):
            memory.seek(page)
            if memory.read(PAGE) != os.pread(held.fd, PAGE, page):
                found.append(page)
        return found


@pytest.fixture(params=TRACKERS)
def carried(
    request: pytest.FixtureRequest, program: Churn, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Carried]:
    monkeypatch.setenv(choose.VARIABLE, request.param)
    made = Carried(program.pid)
    assert made.carrier.tracker == request.param
    yield made
    made.close()


def test_rounds_shrink_to_what_was_written(carried: Carried, program: Churn) -> None:
    at = program.map("anon", 4 * MIB)
    program.do("write", at, 4 * MIB, 1)
    assert carried.round() >= 4 * MIB // PAGE
    program.do("touch", at + 9 * PAGE)
    # Besides, the program's own pages that it answers with.
    assert 1 <= carried.round() < 32
    assert carried.differences() == []


def test_what_goes_and_comes_back_is_never_taken_for_what_it_was(
    carried: Carried, program: Churn
) -> None:
    at = program.map("anon", MIB)
    program.do("write", at, MIB, 1)
    carried.round()
    # Unmapped at one look, and there again at the next: empty, in part, with the same bytes as before.
    program.do("unmap", at, MIB)
    carried.round()
    program.do("map-at", at, MIB)
    carried.round()
    assert carried.differences() == []
    program.do("write", at, 8 * PAGE, 1)
    carried.round()
    assert carried.differences() == []
    # Given back, and written with the same bytes again, before and after a look.
    program.do("write", at, MIB, 1)
    carried.round()
    program.do("free", at, MIB)
    carried.round()
    assert carried.differences() == []
    program.do("write", at, MIB, 1)
    carried.round()
    assert carried.differences() == []
    program.do("free", at, MIB // 2)
    program.do("write", at, MIB // 4, 1)
    program.do("read", at + MIB // 4)
    carried.round(frozen=True)
    assert carried.differences() == []


def test_memory_that_changes_in_every_way_at_random_is_followed(
    carried: Carried, program: Churn
) -> None:
    chance = random.Random(7)
    at = program.map("anon", MIB)
    mapped = True
    for _ in range(60):
        for _ in range(chance.randrange(3)):
            offset = chance.randrange(200) * PAGE
            step = chance.choice(["write", "write", "free", "unmap", "map-at", "move", "protect"])
            if step == "unmap" and mapped:
                program.do("unmap", at, MIB)
                mapped = False
            elif step == "map-at":
                program.do("map-at", at, MIB)
                mapped = True
            elif not mapped:
                continue
            elif step == "write":
                program.do("write", at + offset, 16 * PAGE, chance.randrange(2))
            elif step == "free":
                program.do("free", at + offset, 16 * PAGE)
            elif step == "move":
                at = program.do("move", at, MIB, MIB)
            elif step == "protect":
                program.do("protect", at, MIB, 3)
        carried.round()
        assert carried.differences() == []
    carried.round(frozen=True)
    assert carried.differences() == []


def test_what_is_written_to_a_private_mapping_of_a_file_is_carried_and_nothing_else_of_it(
    carried: Carried, program: Churn
) -> None:
    size = LEAST_COPIED + 16 * PAGE
    at = program.map("file", size)
    program.do("touch", at + PAGE)
    carried.round()
    assert carried.differences() == []
    program.do("touch", at + 3 * PAGE)
    program.do("free", at, 2 * PAGE)
    # What was given back may look as if it were there, and be sent with the file's bytes: once.
    carried.round()
    carried.round()
    assert carried.differences() == []
    at = program.do("move", at, size, size)
    program.do("touch", at + PAGE)
    carried.round()
    assert carried.differences() == []
    program.do("unmap", at, 2 * PAGE)
    carried.round()
    program.do("touch", at + 2 * PAGE)
    carried.round(frozen=True)
    assert carried.differences() == []


def test_a_tracker_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choose.VARIABLE, "magic")
    with pytest.raises(BadInput, match="compare"):
        choose.best()
