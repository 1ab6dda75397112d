"""Pages that are kept in a file are those that were last taken, and nothing of the file is ever left."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import RuntimeFault, Unsupported
from runtime.pagecache import file as page_file
from runtime.pagecache.file import WINDOW, PageFile
from runtime.pagesource import keep
from runtime.pagesource.keep import PageKeeper
from runtime.pagesource.read import TaskReader
from runtime.pagesource.wire import PAGE
from runtime.tracking.ranges import merged

TASK = 7


class Memory:
    """Some pages of this very process on both sides of the end of a window, as a task would have them."""

    def __init__(self, pages: int) -> None:
        self._map = mmap.mmap(
            -1, WINDOW + pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        edge = -(-(base + pages // 2 * PAGE) // WINDOW) * WINDOW
        self.start = edge - pages // 2 * PAGE
        self._offset = self.start - base
        self.pages = pages

    def put(self, page: int, data: bytes) -> None:
        at = self._offset + page * PAGE
        self._map[at : at + PAGE] = data.ljust(PAGE, b"\0")

    def get(self, page: int) -> bytes:
        at = self._offset + page * PAGE
        return self._map[at : at + PAGE]

    def runs(self, *pages: int) -> list[tuple[int, int]]:
        return merged((self.start + p * PAGE, self.start + (p + 1) * PAGE) for p in pages)

    def all(self) -> list[tuple[int, int]]:
        return self.runs(*range(self.pages))


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[PageKeeper]:
    with PageKeeper(tmp_path) as made:
        yield made
    assert os.listdir(tmp_path) == []


@pytest.fixture
def reader() -> Iterator[TaskReader]:
    with TaskReader(os.getpid()) as made:
        yield made


def kept(keeper: PageKeeper, task: int = TASK) -> dict[int, bytes]:
    """By address, what the keeper has; reading it as an assembly does."""
    found = {}
    for start, end in keeper.runs(task):
        at = start
        for offset, size in keeper.file.taking(task, start, end):
            data = os.pread(keeper.file.fd, size, offset)
            for index in range(0, size, PAGE):
                found[at + index] = data[index : index + PAGE]
            at += size
        assert at == end
    return found


def of(memory: Memory, *pages: int) -> dict[int, bytes]:
    return {memory.start + page * PAGE: memory.get(page) for page in pages}


def test_rounds_leave_the_pages_as_they_were_last_taken(
    keeper: PageKeeper, reader: TaskReader
) -> None:
    memory, chance = Memory(64), random.Random(1)
    sent: set[int] = set()
    for number in range(12):
        if number == 9:
            keeper.prepare(PAGE)
            keeper.hold()  # the frozen window: the last three looks
        dirty = chance.sample(range(64), chance.randrange(1, 40))
        gone = [p for p in chance.sample(range(64), 4) if p not in dirty]
        for page in dirty:
            data = chance.randbytes(PAGE) if chance.random() < 0.7 else b""
            memory.put(page, data)
        assert keeper.send(TASK, reader, memory.runs(*dirty), quick=number >= 9) == len(dirty)
        keeper.gone(TASK, memory.runs(*gone))
        for page in gone:
            memory.put(page, b"")
        sent |= set(dirty)
    keeper.release()
    assert kept(keeper) == {
        at: data for at, data in of(memory, *sent).items() if data != bytes(PAGE)
    }


def test_in_the_frozen_window_nothing_is_written_to_the_file(
    keeper: PageKeeper, reader: TaskReader
) -> None:
    memory = Memory(8)
    memory.put(0, b"before")
    keeper.send(TASK, reader, memory.all())
    blocks = os.fstat(keeper.file.fd).st_blocks
    keeper.prepare(0)
    keeper.hold()
    for page in range(8):
        memory.put(page, b"then %d" % page)
    keeper.send(TASK, reader, memory.all(), quick=True)
    assert os.fstat(keeper.file.fd).st_blocks == blocks
    assert list(kept(keeper).values()) == [b"before".ljust(PAGE, b"\0")]
    wanted = of(memory, *range(8))
    for page in range(8):
        memory.put(page, b"after the window")
    keeper.release()
    assert kept(keeper) == wanted


def test_what_the_window_brings_beyond_the_memory_for_it_goes_into_the_file(
    tmp_path: Path, reader: TaskReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keep, "HELD_LIMIT", 4 * PAGE)
    monkeypatch.setattr(keep, "_ROOM", PAGE)
    memory = Memory(16)
    for page in range(16):
        memory.put(page, b"page %d" % page)
    with PageKeeper(tmp_path) as keeper:
        keeper.prepare(0)
        keeper.hold()
        for page in range(16):
            keeper.send(TASK, reader, memory.runs(page), quick=True)
        assert len(kept(keeper)) == 12
        keeper.release()
        assert kept(keeper) == of(memory, *range(16))


def test_tasks_do_not_mix_and_one_that_ended_leaves_no_page(
    keeper: PageKeeper, reader: TaskReader
) -> None:
    memory = Memory(8)
    for task in (1, 2, 3):
        for page in range(8):
            memory.put(page, b"%d of %d" % (page, task))
        keeper.send(task, reader, memory.all())
    keeper.ended(1)
    assert kept(keeper, 1) == {} and kept(keeper, 3) == of(memory, *range(8))
    keeper.send(4, reader, memory.runs(1))  # takes the place of the first one's
    assert kept(keeper, 4) == of(memory, 1)
    assert kept(keeper, 2)[memory.start] == b"0 of 2".ljust(PAGE, b"\0")


def test_windows_that_were_taken_give_their_room_back(
    keeper: PageKeeper, reader: TaskReader
) -> None:
    memory = Memory(8)
    for page in range(8):
        memory.put(page, b"x")
    keeper.send(TASK, reader, memory.all())
    before = os.fstat(keeper.file.fd).st_blocks
    (low, middle), (_, high) = (runs := list(keeper.file.runs(TASK)))[0], runs[-1]
    assert middle % WINDOW == 0 and len(list(keeper.file.taking(TASK, low, high))) == 2
    list(keeper.file.taking(TASK, middle, high))
    assert os.fstat(keeper.file.fd).st_blocks == before // 2
    assert kept(keeper) == of(memory, *range(4, 8))


def test_pages_that_vanish_while_they_are_read_are_gone(
    keeper: PageKeeper, reader: TaskReader
) -> None:
    memory = Memory(4)
    memory.put(1, b"there")
    missing = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    anchor = ctypes.c_char.from_buffer(missing)
    address = ctypes.addressof(anchor)
    keeper.send(TASK, reader, [(address, address + PAGE)])
    del anchor
    missing.close()
    runs = merged([*memory.runs(1), (address, address + PAGE)])
    assert keeper.send(TASK, reader, runs) == 1
    assert kept(keeper) == of(memory, 1)


def test_where_files_cannot_have_holes_zeros_are_written_instead(
    keeper: PageKeeper, reader: TaskReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(fd: int, offset: int, length: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(page_file, "punch_hole", refuses)
    memory = Memory(4)
    for page in range(4):
        memory.put(page, b"x")
    keeper.send(TASK, reader, memory.all())
    keeper.gone(TASK, memory.runs(2))
    memory.put(2, b"")
    assert kept(keeper) == of(memory, 0, 1, 2, 3)


def test_a_file_system_without_large_files_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_file, "SIZE", 1 << 62)
    with pytest.raises(Unsupported, match="no large files"):
        PageFile(tmp_path)
    assert os.listdir(tmp_path) == []


def test_one_that_is_given_up_takes_nothing_more(keeper: PageKeeper, reader: TaskReader) -> None:
    memory = Memory(4)
    keeper.abort()
    with pytest.raises(RuntimeFault, match="given up"):
        keeper.send(TASK, reader, memory.all())
