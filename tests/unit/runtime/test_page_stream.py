"""Pages go from a process into a store and are the same there, whatever is left out on the way."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from blake3 import blake3

from ckpt.ops.memory_use import memory_use
from runtime.errors import BadInput, Conflict, RuntimeFault, SystemFault
from runtime.pagecache.charge import Charger
from runtime.pagecache.store import PageStore
from runtime.pager.pending import Pending
from runtime.pagesource import wire
from runtime.pagesource.compress import PROBE_EVERY, Chooser, better_compressed
from runtime.pagesource.condense import Condenser
from runtime.pagesource.read import Buffer, TaskReader, batches, joined
from runtime.pagesource.receive import PageReceiver
from runtime.pagesource.send import PageSender
from runtime.pagesource.wire import PAGE, Kind

ME = os.getpid()


class Memory:
    """Pages of this very process, as a task would have them."""

    def __init__(self, pages: int) -> None:
        self.map = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.pages = pages

    def put(self, page: int, data: bytes) -> None:
        self.map[page * PAGE : page * PAGE + len(data)] = data

    def run(self, first: int, last: int) -> tuple[int, int]:
        return self.start + first * PAGE, self.start + last * PAGE


class Move:
    """A sender and a receiver with a pipe between; use as a context manager."""

    def __init__(self, store: PageStore, **options: bool) -> None:
        self._reader, self._writer = os.pipe()
        self.sender = PageSender(self._writer, **options)
        self.receiver = PageReceiver(self._reader, store, digest=options.get("digest", True))
        self.marks: list[wire.Mark] = []
        self.faults: list[RuntimeFault] = []
        self._thread = threading.Thread(target=self._receive)
        self._expected = 0

    def __enter__(self) -> Move:
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.close()
        os.close(self._writer)
        os.close(self._reader)

    def _receive(self) -> None:
        try:
            self.marks.append(self.receiver.until_mark())
        except RuntimeFault as fault:
            self.faults.append(fault)

    def mark(self) -> wire.Mark:
        """Everything sent so far has arrived."""
        thread = threading.Thread(target=self._receive)
        thread.start()
        self.sender.mark()
        self.sender.flush()
        thread.join()
        if self.faults:
            raise self.faults[0]
        return self.marks[-1]

    def background(self, work: Callable[[], object]) -> wire.Mark:
        """Send while the other side receives, as much as you like."""
        thread = threading.Thread(target=self._receive)
        thread.start()
        work()
        self.sender.mark()
        thread.join()
        if self.faults:
            raise self.faults[0]
        return self.marks[-1]


@pytest.fixture
def store() -> Iterator[PageStore]:
    with PageStore() as store:
        yield store


def stored(store: PageStore, task: int, run: tuple[int, int]) -> bytes:
    return os.pread(store[task].fd, run[1] - run[0], run[0])


@pytest.mark.parametrize("compress", [False, True])
def test_what_arrives_is_what_was_read(store: PageStore, compress: bool) -> None:
    memory = Memory(700)
    chance = random.Random(4)
    for page in range(memory.pages):
        kind = chance.randrange(4)
        if kind == 0:
            memory.put(page, chance.randbytes(PAGE))
        elif kind == 1:
            memory.put(page, b"again and again " * 256)
        elif kind == 2:
            memory.put(page, bytes([page % 256]) * PAGE)
    runs = [memory.run(0, 3), memory.run(5, 400), memory.run(401, 402), memory.run(500, 700)]
    with TaskReader(ME) as reader, Move(store, compress=compress) as move:
        mark = move.background(lambda: move.sender.send(7, reader, runs))
        for first, last in [(0, 3), (5, 400), (401, 402), (500, 700)]:
            expected = memory.map[first * PAGE : last * PAGE]
            assert stored(store, 7, memory.run(first, last)) == expected
        assert mark.counts.zeros > 50 and mark.counts.same > 50
        assert mark.counts.zeros + mark.counts.same + mark.counts.pages == 599


def test_a_page_that_changed_is_what_it_is_now(store: PageStore) -> None:
    memory = Memory(64)
    same = os.urandom(PAGE)
    with TaskReader(ME) as reader, Move(store) as move:
        for page in range(64):
            memory.put(page, same)
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 64)]))
        assert move.sender.counts.same == 62
        # The place that all others refer to gets something else, and another becomes what it was.
        for page in range(3):
            memory.put(page, os.urandom(PAGE))
        memory.put(5, bytes(PAGE))
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 6)]))
        memory.put(0, same)
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 1)]))
        assert stored(store, 1, memory.run(0, 64)) == memory.map[:]


def test_zeros_take_no_memory_and_become_holes(store: PageStore) -> None:
    memory = Memory(32)
    with TaskReader(ME) as reader, Move(store) as move:
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 32)]))
        assert list(store[1].runs()) == [] and store.size == 0
        memory.put(3, b"x")
        memory.put(9, b"y")
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 32)]))
        assert list(store[1].runs()) == [memory.run(3, 4), memory.run(9, 10)]
        memory.put(3, b"\0")
        move.background(lambda: move.sender.send(1, reader, [memory.run(3, 4)]))
        assert list(store[1].runs()) == [memory.run(9, 10)]
        assert store.size == PAGE


def test_what_is_known_of_the_pages_is_what_the_file_has(store: PageStore) -> None:
    memory = Memory(300)
    chance = random.Random(8)
    with TaskReader(ME) as reader, Move(store) as move:
        for _ in range(12):
            for page in chance.sample(range(300), 90):
                memory.put(
                    page, chance.choice([bytes(PAGE), b"equal" * 819, chance.randbytes(PAGE)])
                )
            first, last = sorted(chance.sample(range(301), 2))
            runs = (
                [memory.run(0, first), memory.run(first, last)] if first else [memory.run(0, last)]
            )
            move.background(lambda runs=runs: move.sender.send(1, reader, runs))  # type: ignore[misc]
            gone = chance.randrange(290)
            move.background(lambda gone=gone: move.sender.gone(1, [memory.run(gone, gone + 7)]))  # type: ignore[misc]
            known = [(start, end) for start, end, _ in store[1].known.ranges()]
            assert joined(known) == list(store[1].runs())


def test_ranges_are_handed_over_in_a_file() -> None:
    known = Pending([(PAGE, 2 * PAGE), (5 * PAGE, 1 << 47)])
    fd = os.memfd_create("runs")
    known.save(fd)
    assert Pending.load(fd).ranges() == known.ranges()
    os.close(fd)


def test_what_is_not_mapped_any_more_is_forgotten(store: PageStore) -> None:
    memory = Memory(8)
    memory.put(0, os.urandom(8 * PAGE))
    kept = memory.map[:]
    libc = ctypes.CDLL(None)
    with TaskReader(ME) as reader, Move(store) as move:
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 8)]))
        libc.munmap(ctypes.c_void_p(memory.start + 2 * PAGE), ctypes.c_size_t(3 * PAGE))
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 8)]))
        assert move.sender.counts.gone == 3
        assert list(store[1].runs()) == [memory.run(0, 2), memory.run(5, 8)]
        assert stored(store, 1, memory.run(5, 8)) == kept[5 * PAGE :]
        # Map it again, for the mmap object's own end.
        libc.mmap(
            ctypes.c_void_p(memory.start + 2 * PAGE), ctypes.c_size_t(3 * PAGE), 3, 0x32, -1, 0
        )


def test_memory_without_read_permission_is_read_as_well(store: PageStore) -> None:
    memory = Memory(4)
    memory.put(0, os.urandom(4 * PAGE))
    kept = memory.map[:]
    libc = ctypes.CDLL(None)
    with TaskReader(ME) as reader, Move(store) as move:
        libc.mprotect(ctypes.c_void_p(memory.start + PAGE), ctypes.c_size_t(PAGE), 0)
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 4)]))
        libc.mprotect(ctypes.c_void_p(memory.start + PAGE), ctypes.c_size_t(PAGE), 3)
        assert stored(store, 1, memory.run(0, 4)) == kept


def test_an_ended_task_is_dropped(store: PageStore) -> None:
    memory = Memory(4)
    memory.put(0, b"x")
    with TaskReader(ME) as reader, Move(store) as move:
        move.background(lambda: move.sender.send(5, reader, [memory.run(0, 4)]))
        assert 5 in store
        move.sender.ended(5)
        move.mark()
        assert 5 not in store


def test_references_reach_over_tasks(store: PageStore) -> None:
    memory = Memory(6)
    for page in range(6):
        memory.put(page, b"shared by fork".ljust(PAGE, b"."))
    with TaskReader(ME) as reader, Move(store) as move:
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 6)]))
        move.background(lambda: move.sender.send(2, reader, [memory.run(0, 6)]))
        assert move.sender.counts.same == 4 + 6
        move.sender.ended(1)
        move.background(lambda: move.sender.send(3, reader, [memory.run(0, 6)]))
        assert stored(store, 2, memory.run(0, 6)) == memory.map[:]
        assert stored(store, 3, memory.run(0, 6)) == memory.map[:]


def test_a_store_that_is_full_refuses(store: PageStore) -> None:
    store.limit = 8 * PAGE
    memory = Memory(16)
    memory.put(0, os.urandom(16 * PAGE))
    with TaskReader(ME) as reader, Move(store) as move:
        move.background(lambda: move.sender.send(1, reader, [memory.run(0, 8)]))
        with pytest.raises(SystemFault, match="memory"):
            move.background(lambda: move.sender.send(1, reader, [memory.run(8, 9)]))


def test_many_small_ranges_are_batched() -> None:
    runs = [(page * 2 * PAGE, (page * 2 + 1) * PAGE) for page in range(3000)]
    cut = list(batches(runs, wire.MAX_PAYLOAD))
    assert [run for batch in cut for run in batch] == runs
    assert len(cut) == -(-3000 // (wire.MAX_PAYLOAD // PAGE))
    (one,) = batches([(0, PAGE)], wire.MAX_PAYLOAD)
    assert one == [(0, PAGE)]
    assert list(batches([], wire.MAX_PAYLOAD)) == []


# --- what a hostile or broken sender can't do --------------------------------------------------------


def fed(store: PageStore, data: bytes, *, digest: bool = False) -> wire.Mark:
    """What the receiver makes of these bytes and the end of the lane."""
    reader, writer = os.pipe()

    def feed() -> None:
        os.write(writer, data)
        os.close(writer)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        return PageReceiver(reader, store, digest=digest).until_mark()
    finally:
        thread.join()
        os.close(reader)


ONE = wire.build_extents([0x1000])


@pytest.mark.parametrize(
    "data",
    [
        bytes(16),
        wire.HEAD.pack(9, 0, 0, 1, 1, 0),
        wire.HEAD.pack(1, 7, 0, 1, 1, 4096),
        wire.HEAD.pack(2, 0, 0, 1, 1 << 20, 0),
        wire.HEAD.pack(1, 0, 0, 1, 1, 1 << 30),
        wire.HEAD.pack(1, 0, 0, 1, 0, 4096),
        wire.HEAD.pack(2, 0, 0, 1, 1, 4096),
        wire.HEAD.pack(6, 0, 0, 0, 0, 3),
        wire.HEAD.pack(1, 0, 0, 1, 1, 8192) + ONE,  # two pages' bytes for one page
        wire.HEAD.pack(2, 0, 0, 1, 1, 0) + struct.pack("<Q", (1 << 56) - 0x1000 | 1),
        wire.HEAD.pack(1, 0, 0, 1, 1, 4096) + struct.pack("<Q", 0x1FFF) + bytes(4096),
        wire.HEAD.pack(1, 1, 0, 1, 1, 9) + ONE + b"not zstd!",
        wire.HEAD.pack(4, 0, 0, 1, 1, 12) + ONE + struct.pack("<QI", 0x2000, 99),  # no such task
        wire.HEAD.pack(4, 0, 0, 1, 1, 12) + ONE + struct.pack("<QI", 0x2001, 1),
        wire.HEAD.pack(4, 0, 0, 1, 1, 12) + ONE + struct.pack("<QI", 1 << 56, 1),
        wire.HEAD.pack(4, 0, 0, 1, 1, 11) + ONE + bytes(11),  # not a place for each page
        wire.HEAD.pack(4, 0, 0, 1, 1, 24) + ONE + bytes(24),
    ],
)
def test_nonsense_is_refused(store: PageStore, data: bytes) -> None:
    with pytest.raises(BadInput):
        fed(store, data)
    assert store.size == 0


def test_a_bomb_is_not_unpacked(store: PageStore) -> None:
    import zstandard

    packed = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    head = wire.build_head(Kind.PAGES, 1, 1, len(packed), wire.Encoding.ZSTD)
    with pytest.raises(BadInput):
        fed(store, head + ONE + packed)


def test_a_lane_that_ends_early_is_said_so(store: PageStore) -> None:
    with pytest.raises(SystemFault, match="ended"):
        fed(store, wire.build_head(Kind.PAGES, 1, 1, 4096) + ONE + bytes(100))


def test_a_mark_that_does_not_match_is_refused(store: PageStore) -> None:
    good = wire.Mark(wire.Counts(records=1), bytes(32))
    head = wire.build_head(Kind.MARK, 0, 0, len(wire.build_mark(good)))
    assert fed(store, head + wire.build_mark(good)) == good
    with pytest.raises(Conflict, match="arrived"):
        fed(store, head + wire.build_mark(wire.Mark(wire.Counts(records=2), bytes(32))))
    with pytest.raises(Conflict, match="not those"):
        fed(store, head + wire.build_mark(good), digest=True)
    right = wire.Mark(wire.Counts(records=1), blake3().digest())
    assert fed(store, head + wire.build_mark(right), digest=True) == right


def test_a_reader_that_goes_away_is_an_error_not_a_signal() -> None:
    memory = Memory(1024)
    memory.put(0, os.urandom(1024 * PAGE))
    reader_fd, writer_fd = os.pipe()
    os.close(reader_fd)
    with TaskReader(ME) as reader, PageSender(writer_fd) as sender, pytest.raises(RuntimeFault):
        for _ in range(3):
            sender.send(1, reader, [memory.run(0, 1024)])
            sender.flush()
    os.close(writer_fd)


# --- decisions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lane", "compressor", "ratio", "better"),
    [
        (1e9, 1.8e9, 1.0, False),  # incompressible
        (1e9, 1.8e9, 1.1, False),  # not worth a core
        (1e9, 1.8e9, 2.0, True),
        (1e9, 0.9e9, 8.0, False),  # the compressor is the slower one
        (3e9, 1.8e9, 8.0, False),
        (1e8, 0.5e9, 1.5, True),  # a slow network
    ],
)
def test_compressing_has_to_pay(lane: float, compressor: float, ratio: float, better: bool) -> None:
    assert better_compressed(lane, compressor, ratio) is better


def test_what_is_not_being_done_is_tried_now_and_then() -> None:
    chooser = Chooser()
    assert chooser.choose()  # nothing known yet
    chooser.compressed(1 << 20, 1 << 20, 0.001)
    chooser.sent(1 << 20, 0.001)
    choices = [chooser.choose() for _ in range(3 * PROBE_EVERY)]
    assert choices.count(True) == 3
    chooser.compressed(1 << 20, 1 << 16, 0.0003)
    for _ in range(20):
        chooser.compressed(1 << 20, 1 << 16, 0.0003)
    assert all(chooser.choose() for _ in range(10))


def test_equal_words_are_not_yet_equal_pages() -> None:
    condenser = Condenser()
    buffer = Buffer(4 * PAGE)
    for page in range(4):
        buffer.view[page * PAGE] = page + 1
    found = condenser.condense(1, [(0, 4 * PAGE)], buffer.view)
    assert not found.same and not found.zeros and found.kept == [(0, 4)]


def test_windows_are_crossed(store: PageStore) -> None:
    start = (1 << 30) - 2 * PAGE
    data = os.urandom(4 * PAGE)
    pages = store[1]
    views = pages.views(start, start + len(data))
    assert [len(view) for view in views] == [2 * PAGE, 2 * PAGE]
    views[0][:], views[1][:] = data[: 2 * PAGE], data[2 * PAGE :]
    assert stored(store, 1, (start, start + len(data))) == data
    assert list(pages.runs()) == [(start, start + len(data))]
    hasher = blake3()
    pages.digest([(start - PAGE, start + 5 * PAGE)], hasher.update)
    assert hasher.digest() == blake3(bytes(PAGE) + data + bytes(PAGE)).digest()
    high = (1 << 47) - PAGE
    pages.views(high, high + PAGE)[0][:1] = b"h"
    assert list(pages.runs(1 << 40)) == [(high, high + PAGE)]


def test_reading_what_forked_processes_have_in_common_leaves_it_in_common() -> None:
    memory = Memory(2048)
    for page in range(memory.pages):
        memory.put(page, b"%d" % page)
    stay, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.read(stay, 1)
        os._exit(0)
    try:
        before = memory_use([child]).forked
        assert before >= memory.pages * PAGE
        buffer = Buffer(wire.MAX_PAYLOAD)
        with TaskReader(child) as reader:
            for batch in batches([memory.run(0, memory.pages)], buffer.size):
                read, gone = reader.read(batch, buffer)
                assert (read, gone) == (batch, [])
                page = (batch[0][0] - memory.start) // PAGE
                assert bytes(buffer.view[: len(str(page))]) == b"%d" % page
        assert memory_use([child]).forked >= before - memory.pages * PAGE // 8
    finally:
        os.close(end)
        os.close(stay)
        os.waitpid(child, 0)


# ---- shared objects

BUFFERS = wire.Shared(4711, True, b"buffers")


def test_a_shared_object_becomes_a_memfd_as_it_was(store: PageStore) -> None:
    memory = Memory(4)
    memory.put(0, b"one")
    with TaskReader(ME) as reader, Move(store) as move:
        move.sender.shared(wire.SHARED_FROM, BUFFERS)
        move.background(lambda: move.sender.send(wire.SHARED_FROM, reader, [memory.run(0, 1)]))
        fd = store[wire.SHARED_FROM].fd
        assert os.readlink(f"/proc/self/fd/{fd}") == "/memfd:buffers (deleted)"
        assert store.shared == {wire.SHARED_FROM: 4711}
        assert stored(store, wire.SHARED_FROM, memory.run(0, 1))[:3] == b"one"
        move.sender.ended(wire.SHARED_FROM)
        move.background(lambda: None)
        assert not store.shared and wire.SHARED_FROM not in store


@pytest.mark.parametrize(
    "record",
    [
        wire.build_head(Kind.SHARED, wire.SHARED_FROM, 0, 3) + b"abc",
        wire.build_head(Kind.SHARED, wire.SHARED_FROM, 0, 6) + b"\1\0\0\0\2n",
        wire.build_head(Kind.SHARED, wire.SHARED_FROM, 0, 7) + b"\1\0\0\0\1n\0",
        wire.build_head(Kind.SHARED, 7, 0, 6) + wire.build_shared(wire.Shared(1, False, b"n")),
        wire.build_head(Kind.SHARED, wire.SHARED_FROM, 0, 400) + bytes(400),
        wire.build_head(Kind.ZEROS, wire.SHARED_FROM, 1, 0) + wire.build_extents([0]),
        2 * (wire.build_head(Kind.SHARED, wire.SHARED_FROM, 0, 12) + wire.build_shared(BUFFERS)),
    ],
    ids=["short", "flag", "name", "a task's number", "long", "untold", "twice"],
)  # fmt: skip
def test_a_shared_object_that_cannot_be_is_refused(store: PageStore, record: bytes) -> None:
    with Move(store) as move:
        os.write(move._writer, record)
        with pytest.raises(BadInput):
            move.receiver.until_mark()


def test_shared_pages_are_allocated_by_who_is_to_own_them() -> None:
    added: list[int] = []
    charger = Charger()
    with PageStore(charger=charger) as store:
        store.share(wire.SHARED_FROM, 1, b"x", sealable=False)
        pages = store[wire.SHARED_FROM]
        waiting = threading.Thread(
            target=store.expect, args=(wire.SHARED_FROM, [(PAGE, 3 * PAGE), (1 << 40, (1 << 40) + PAGE)])
        )  # fmt: skip
        waiting.start()
        assert pages.size == 0
        charger.begin(added.append)
        waiting.join()
        assert pages.size == 3 * PAGE and len(added) == 1
        store.forget(wire.SHARED_FROM, [(PAGE, 2 * PAGE)])
        assert pages.size == 2 * PAGE
        store.expect(wire.SHARED_FROM, [(PAGE, 3 * PAGE)])
        assert pages.size == 3 * PAGE
        charger.end()
        store.expect(wire.SHARED_FROM, [(PAGE, 3 * PAGE)])  # all there
        with pytest.raises(SystemFault, match="given up"):
            store.expect(wire.SHARED_FROM, [(8 * PAGE, 9 * PAGE)])
        assert not os.path.exists(f"/proc/{added[0]}")


def test_an_object_in_the_place_of_another_is_allocated_anew() -> None:
    charger = Charger()
    charger.begin(lambda pid: None)
    run = (PAGE, 3 * PAGE)
    with PageStore(charger=charger) as store:
        # Both memfds get the same descriptor.
        for number in (wire.SHARED_FROM, wire.SHARED_FROM + 1):
            store.share(number, 1, b"x", sealable=False)
            store.expect(number, [run])
            assert store[number].size == 2 * PAGE
            store.drop(number)
    charger.end()
