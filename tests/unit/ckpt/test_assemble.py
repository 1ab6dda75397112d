"""A checkpoint that is put together from what CRIU wrote aside and from pages that were copied is whole."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ckpt.ops.aside import Aside
from ckpt.ops.assemble import complete
from images.errors import Corrupt, Truncated
from images.moving import Mover
from images.pages import (
    PAGE,
    PRESENT,
    PageRun,
    build_page_map,
    parse_page_map,
    read_page_map,
)
from images.parts import CRIU, FILES, INVENTORY, DirectorySink, Sink
from images.pour import pour_bytes
from runtime.pagesource.keep import PageKeeper
from runtime.pagesource.read import Buffer, Place
from runtime.pagesource.wire import COPIES_FROM, SHARED_FROM, Range, Shared


class Folder:
    """A target of files, and the order in which they came."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.order: list[str] = []
        for kind in (CRIU, FILES):
            (path / kind).mkdir(parents=True)

    def sink(self, kind: str) -> Sink:
        folder = self

        class Noting(DirectorySink):
            def open(self, name: str):  # type: ignore[no-untyped-def]
                folder.order.append(name)
                return super().open(name)

        fd = os.open(self.path / kind, os.O_RDONLY | os.O_DIRECTORY)
        self.fds.append(fd)
        return Noting(fd, kind)

    fds: list[int] = []

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())

    def read(self, name: str) -> bytes:
        return (self.path / CRIU / name).read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "target")
    yield made
    made.close()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


class Memory:
    """A `PageReader`: pages of a byte each."""

    target = "memory"

    def __init__(self, pages: dict[int, bytes]) -> None:
        self._pages = pages

    def read(
        self, batch: Sequence[Range], buffer: Buffer | Place
    ) -> tuple[list[Range], list[Range]]:
        at = 0
        for start, end in batch:
            for page in range(start // PAGE, end // PAGE):
                buffer.view[at : at + PAGE] = self._pages[page] * PAGE
                at += PAGE
        return list(batch), []


def put(target: Aside, name: str, data: bytes, kind: str = CRIU) -> None:
    with Mover(doing="testing", target=name) as mover:
        pour_bytes(target.sink(kind), name, data, mover)


def page_map(pages_id: int, *pages: int) -> bytes:
    return build_page_map(pages_id, (PageRun(page * PAGE, 1, PRESENT) for page in pages))


def restored(folder: Folder, task: int) -> dict[int, bytes]:
    """By page, what a restore would put there."""
    found = {}
    made = read_page_map(str(folder.path / CRIU), f"pagemap-{task}.img")
    data = folder.read(made.pages_file)
    at = 0
    for run in made.runs:
        for page in range(run.pages):
            found[run.address // PAGE + page] = data[at : at + PAGE]
            at += PAGE
    assert at == len(data)
    return found


@pytest.mark.parametrize("limit", [1 << 20, 5000, 0])
def test_every_page_comes_from_where_it_was_last(folder: Folder, work: Path, limit: int) -> None:
    chance = random.Random(limit)
    wanted: dict[int, dict[int, bytes]] = {}
    held = {INVENTORY: b"inventory"}
    with PageKeeper(work) as keeper, Aside(work, limit=limit) as aside:
        for task in (1, 20):
            memory = {page: chance.randbytes(PAGE) for page in chance.sample(range(1, 400), 150)}
            ours = set(chance.sample(sorted(memory), 90))
            for page in ours:
                keeper.file.write(task, page * PAGE, memoryview(memory[page]))
            # Copied once, but not hidden in the end: CRIU has it.
            stray = min(set(memory) - ours)
            keeper.file.write(task, stray * PAGE, memoryview(bytes(PAGE)))
            theirs = sorted(set(memory) - ours)
            put(aside, f"pages-{task}.img", b"".join(memory[page] for page in theirs))
            held[f"pagemap-{task}.img"] = page_map(task, *theirs)
            put(aside, f"core-{task}.img", b"core %d" % task)
            wanted[task] = memory
        put(aside, "pages-99.img", b"shared memory")
        put(aside, "upper-001.tree", b"files", FILES)

        def hidden(task: int) -> list[tuple[int, int]]:
            theirs = {r.address for r in parse_page_map(held[f"pagemap-{task}.img"], "x").runs}
            return [(p * PAGE, (p + 1) * PAGE) for p in range(500) if p * PAGE not in theirs]

        assert complete(folder, aside, held, keeper, hidden) == 2 * 90 * PAGE
        assert not keeper.runs(1) and not keeper.runs(20)
    assert {task: restored(folder, task) for task in wanted} == wanted
    assert folder.read("core-20.img") == b"core 20"
    assert folder.read("pages-99.img") == b"shared memory"
    assert (folder.path / FILES / "upper-001.tree").read_bytes() == b"files"
    assert folder.order[-1] == INVENTORY
    assert len(folder.order) == len(set(folder.order))
    assert os.listdir(work) == []


def test_pages_over_a_file_s_keep_their_zeros_and_shared_ones_come_by_inode(
    folder: Folder, work: Path
) -> None:
    held = {
        "pagemap-1.img": page_map(1, 50),
        "pagemap-shmem-77.img": page_map(2),
        "pagemap-shmem-78.img": page_map(3, 4),
        INVENTORY: b"inventory",
    }
    number = SHARED_FROM + 5
    with PageKeeper(work) as keeper, Aside(work) as aside:
        put(aside, "pages-1.img", b"c" * PAGE)
        put(aside, "pages-2.img", b"")
        put(aside, "pages-3.img", b"o" * PAGE)
        memory = Memory({10: b"a", 20: b"f", 21: b"\0", 22: b"v", 3: b"s", 4: b"\0"})
        keeper.send(1, memory, [(10 * PAGE, 11 * PAGE)])
        keeper.send(COPIES_FROM + 1, memory, [(20 * PAGE, 23 * PAGE)])
        keeper.shared(number, Shared(77, False, b"x"))
        keeper.send(number, memory, [(3 * PAGE, 5 * PAGE)])
        size = complete(
            folder, aside, held, keeper, lambda task: [(10 * PAGE, 30 * PAGE)],
            of_files=lambda task: [(20 * PAGE, 22 * PAGE)] if task == 1 else [], shared={77: number},
        )  # fmt: skip
        assert size == 4 * PAGE
        assert not keeper.runs(number) and not keeper.runs(COPIES_FROM + 1)
    whole = {10: b"a", 20: b"f", 21: b"\0", 50: b"c"}
    assert restored(folder, 1) == {page: byte * PAGE for page, byte in whole.items()}
    made = read_page_map(str(folder.path / CRIU), "pagemap-shmem-77.img")
    assert made.runs == (PageRun(3 * PAGE, 1, PRESENT),)
    assert folder.read("pages-2.img") == b"s" * PAGE
    # What CRIU has dumped itself is as it was.
    assert folder.read("pagemap-shmem-78.img") == held["pagemap-shmem-78.img"]
    assert folder.read("pages-3.img") == b"o" * PAGE


def test_pages_that_crius_map_does_not_speak_of_are_an_error(folder: Folder, work: Path) -> None:
    with PageKeeper(work) as keeper, Aside(work) as aside:
        put(aside, "pages-1.img", bytes(2 * PAGE))
        for pages, what in (((1,), "more pages"), ((1, 2, 3), "too early")):
            with pytest.raises(Truncated, match=what):
                complete(
                    folder, aside, {"pagemap-1.img": page_map(1, *pages)}, keeper, lambda t: []
                )


def test_a_page_that_was_hidden_and_dumped_is_an_error(folder: Folder, work: Path) -> None:
    with PageKeeper(work) as keeper, Aside(work) as aside:
        put(aside, "pages-1.img", bytes(PAGE))
        keeper.file.write(1, PAGE, memoryview(b"x" * PAGE))
        with pytest.raises(Corrupt, match="pages-1|pagemap-1"):
            complete(
                folder, aside, {"pagemap-1.img": page_map(1, 1)}, keeper, lambda t: [(0, 9 * PAGE)]
            )


def test_parts_that_are_written_at_the_same_time_do_not_mix(folder: Folder, work: Path) -> None:
    data = {f"part-{n}": bytes([n]) * (50_000 + n) for n in range(6)}

    def write(name: str) -> None:
        reader, writer = os.pipe()
        with Mover(doing="testing", target=name) as mover:
            part = aside.sink(CRIU).open(name)
            for at in range(0, len(data[name]), 4096):
                piece = data[name][at : at + 4096]
                os.write(writer, piece)
                part.take(mover, reader, len(piece))
            part.close()
        os.close(reader)
        os.close(writer)

    with Aside(work, limit=100_000) as aside:
        threads = [threading.Thread(target=write, args=(name,)) for name in data]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert aside.size == sum(map(len, data.values()))
        aside.pour(folder, lambda kind, name: name != "part-3")
    del data["part-3"]
    assert {name: folder.read(name) for name in folder.order} == data


def test_a_part_that_comes_twice_is_the_second(folder: Folder, work: Path) -> None:
    with Aside(work) as aside:
        put(aside, "one", b"first")
        put(aside, "two", b"2")
        put(aside, "one", b"second")
        aside.pour(folder, lambda kind, name: True)
    assert folder.order == ["two", "one"] and folder.read("one") == b"second"
