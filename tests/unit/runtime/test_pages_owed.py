"""Pages that are still to come: noted page by page, told over the lane, and taken away as they arrive."""

from __future__ import annotations

import os
import random
import threading

from runtime.pagecache.store import Owed, PageStore
from runtime.pager.pending import Pending
from runtime.pagesource.read import TaskReader
from runtime.pagesource.receive import PageReceiver
from runtime.pagesource.send import PageSender
from runtime.pagesource.serve import PageServing
from runtime.pagesource.wire import PAGE, Range
from tests.unit.runtime.test_page_stream import ME, Memory

FAR = 1 << 46


def test_notes_are_what_a_set_of_pages_would_be() -> None:
    chance = random.Random(3)
    owed, model = Owed(), set()
    for _ in range(200):
        start = chance.randrange(400)
        end = start + chance.randrange(1, 60)
        add = chance.random() < 0.5
        (owed.add if add else owed.remove)(FAR + start * PAGE, FAR + end * PAGE)
        model = model | set(range(start, end)) if add else model - set(range(start, end))
        found = {(p - FAR) // PAGE for a, b in owed.runs() for p in range(a, b, PAGE)}
        assert found == model
        low, high = FAR + start * PAGE, FAR + 460 * PAGE
        assert owed.first(low, high) == min(
            (FAR + p * PAGE for p in model if p >= start), default=high
        )
    os.close(owed.fd)


def test_a_piece_of_what_is_pending_is_found_between_two_addresses() -> None:
    pending = Pending([(10, 20), (30, 40)])
    assert pending.within(0, 100) == (10, 20, 0)
    assert pending.within(15, 18) == (15, 18, 0)
    assert pending.within(20, 30) is None
    assert pending.within(25, 35) == (30, 35, 0)


def test_what_is_asked_for_comes_over_both_lanes_and_is_owed_no_more() -> None:
    memory = Memory(64)
    for page in range(0, 64, 2):
        memory.put(page, os.urandom(PAGE))
    came: list[Range] = []
    with PageStore() as store, TaskReader(ME) as one, TaskReader(ME) as other:
        lanes = [os.pipe(), os.pipe()]
        bulk, urgent = (PageSender(writer) for _, writer in lanes)
        receivers = [
            PageReceiver(reader, store, on_pages=lambda task, runs: came.extend(runs))
            for reader, _ in lanes
        ]
        bulk.owe(7, [memory.run(0, 64)])
        bulk.mark()
        receivers[0].until_mark()
        assert list(store[7].owed.runs()) == [memory.run(0, 64)]  # type: ignore[union-attr]
        threads = [threading.Thread(target=one.until_mark) for one in receivers]
        for thread in threads:
            thread.start()
        faults: list[Exception] = []
        serving = PageServing(({7: one}, {7: other}), bulk, urgent, on_fault=faults.append)
        serving.ask(7, [memory.run(8, 24)], urgent=True)
        serving.ask(7, [memory.run(0, 64)], urgent=False)  # some of it twice
        serving.finish()
        for thread in threads:
            thread.join()
        serving.close()
        for fd in (fd for lane in lanes for fd in lane):
            os.close(fd)
        assert not faults
        assert not list(store[7].owed.runs())  # type: ignore[union-attr]
        start, end = memory.run(0, 64)
        assert os.pread(store[7].fd, end - start, start) == memory.map[:]
        assert sum(b - a for a, b in came) == (64 + 16) * PAGE


def test_a_task_that_is_gone_is_told_from_a_lane_that_is_broken() -> None:
    reader, writer = os.pipe()
    other_reader, other_writer = os.pipe()
    told = threading.Event()
    faults: list[str] = []

    def on_fault(fault: Exception) -> None:
        faults.append(type(fault).__name__)
        told.set()

    serving = PageServing(({}, {}), PageSender(writer), PageSender(other_writer), on_fault=on_fault)
    serving.ask(7, [(FAR, FAR + PAGE)], urgent=False)
    assert told.wait(20)
    serving.close()
    assert faults == ["NotFound"]
    for fd in (reader, writer, other_reader, other_writer):
        os.close(fd)
