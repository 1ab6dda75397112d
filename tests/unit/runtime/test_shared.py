"""Shared objects: what processes have is found, and each change of content is seen, however it was made."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import NotFound
from runtime.pagesource.read import Buffer, batches
from runtime.shared.find import ANONYMOUS, SharedObject, largest, missing, objects
from runtime.shared.follow import PAGE, Followed
from runtime.tracking.ranges import Range
from tests import needs

pytestmark = [needs.root, needs.compiler]
ME = [os.getpid()]


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("ckpt-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    yield fd
    os.close(fd)


def found(fd: int) -> SharedObject:
    return objects(ME)[os.fstat(fd).st_ino]


def pages(*numbers: int) -> list[Range]:
    return [(number * PAGE, number * PAGE + PAGE) for number in numbers]


class Copy:
    """What a destination would have of an object: pages that were read, in order of time."""

    def __init__(self, followed: Followed) -> None:
        self.content: dict[int, bytes] = {}
        self._followed = followed
        self._buffer = Buffer(1 << 20)

    def round(self) -> int:
        """Bring it up to date; how many pages were read."""
        dirty, gone = self._followed.changed()
        self._drop(gone)
        count = 0
        for batch in batches(dirty, self._buffer.size):
            read, missing = self._followed.read(batch, self._buffer)
            self._drop(missing)
            at = 0
            for start, end in read:
                for page in range(start, end, PAGE):
                    self.content[page] = bytes(self._buffer.view[at : at + PAGE])
                    at += PAGE
                    count += 1
        return count

    def _drop(self, ranges: list[Range]) -> None:
        for start, end in ranges:
            for page in [page for page in self.content if start <= page < end]:
                del self.content[page]

    def whole(self, size: int) -> bytes:
        return b"".join(self.content.get(at, bytes(PAGE)) for at in range(0, size, PAGE))[:size]


def test_anonymous_shared_memory_and_memfds_are_found_and_nothing_else(
    memfd: int, tmp_path: Path
) -> None:
    shared = mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    with (tmp_path / "file").open("w+b") as file:
        file.truncate(PAGE)
        mapped = mmap.mmap(file.fileno(), PAGE)
        here = objects(ME)
        assert os.fstat(file.fileno()).st_ino not in here
        mapped.close()
    assert found(memfd).name == "ckpt-test"
    assert ANONYMOUS in {one.name for one in here.values()}
    assert missing(here, ME) == set() and missing([1, *here], ME) == {1}
    shared.close()
    assert objects([1 << 22]) == {}


def test_the_largest_are_those_that_take_the_most_memory(memfd: int) -> None:
    small = os.memfd_create("ckpt-small", os.MFD_CLOEXEC)
    os.ftruncate(small, 1 << 40)  # of which nothing is there
    os.pwrite(memfd, bytes(8 * PAGE), 0)
    gone = SharedObject(1, "gone", "/proc/self/fd/-1")
    chosen = [gone, found(small), found(memfd)]
    assert [one.name for one in largest(chosen, 5)] == ["ckpt-test", "ckpt-small"]
    assert [one.name for one in largest(chosen, 1)] == ["ckpt-test"]
    assert largest(chosen, -1) == []
    os.close(small)


def test_every_way_of_writing_is_seen(memfd: int, tmp_path: Path) -> None:
    os.ftruncate(memfd, 64 * PAGE)
    with Followed(found(memfd), tmp_path) as followed:
        copy = Copy(followed)
        assert followed.changed() == ([], [])
        os.pwrite(memfd, b"x", 5 * PAGE + 7)
        mapped = mmap.mmap(memfd, 64 * PAGE)
        mapped[9 * PAGE] = 1
        child = os.fork()
        if not child:
            mapped[11 * PAGE] = 1  # and is gone, with its page table
            os._exit(0)
        os.waitpid(child, 0)
        assert followed.changed() == (pages(5, 9, 11), [])
        assert copy.round() == 3
        assert followed.changed() == ([], [])
        mapped[9 * PAGE] = 2
        mapped.close()
        assert followed.changed() == (pages(9), [])


def test_what_changed_and_changed_back_counts_by_what_was_read(memfd: int, tmp_path: Path) -> None:
    os.pwrite(memfd, b"a" * PAGE, 0)
    with Followed(found(memfd), tmp_path) as followed:
        copy = Copy(followed)
        dirty, _ = followed.changed()
        os.pwrite(memfd, b"b" * PAGE, 0)  # between look and read
        followed.read(dirty, Buffer(PAGE))
        os.pwrite(memfd, b"a" * PAGE, 0)
        assert followed.changed() == (pages(0), [])
        copy.round()
        assert copy.whole(PAGE) == b"a" * PAGE
        # After the last look nobody asks again: what is read then is not remembered.
        os.pwrite(memfd, b"c" * PAGE, 0)
        assert followed.changed(last=True) == (pages(0), [])
        followed.read(pages(0), Buffer(PAGE))
        assert followed.changed() == (pages(0), [])


def test_holes_are_left_holes_and_what_becomes_one_is_told(memfd: int, tmp_path: Path) -> None:
    os.ftruncate(memfd, 1 << 30)
    for page in (3, 100_000, 262_143):
        os.pwrite(memfd, b"x", page * PAGE)
    with Followed(found(memfd), tmp_path) as followed:
        copy = Copy(followed)
        assert copy.round() == 3
        assert os.fstat(memfd).st_blocks * 512 == 3 * PAGE
        os.ftruncate(memfd, 1 << 50)  # what is nowhere takes no memory here either
        assert followed.changed() == ([], [])
        os.ftruncate(memfd, 200_000 * PAGE)
        dirty, gone = followed.changed()
        assert dirty == [] and len(gone) == 1 and gone[0][0] <= 262_143 * PAGE < gone[0][1]
        assert followed.changed() == ([], [])
        os.ftruncate(memfd, 1 << 30)
        os.pwrite(memfd, b"x", 262_143 * PAGE)
        assert followed.changed() == (pages(262_143), [])


def test_an_end_within_a_page_is_read_as_the_kernel_has_it(memfd: int, tmp_path: Path) -> None:
    os.pwrite(memfd, b"x" * (PAGE + 100), 0)
    with Followed(found(memfd), tmp_path) as followed:
        copy = Copy(followed)
        assert copy.round() == 2
        assert copy.whole(2 * PAGE) == b"x" * (PAGE + 100) + bytes(PAGE - 100)
        assert followed.changed() == ([], [])


def test_random_changes_are_all_seen_whether_it_is_read_in_place_or_not(tmp_path: Path) -> None:
    chance = random.Random(7)
    size = 3000 * PAGE
    for sealed in (False, True):
        fd = os.memfd_create("ckpt-random", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        if sealed:
            fcntl.fcntl(fd, 1033, 2)  # F_ADD_SEALS, F_SEAL_SHRINK
        with Followed(found(fd), tmp_path) as followed:
            copy = Copy(followed)
            for _ in range(6):
                for _ in range(chance.choice([1, 40, 900])):
                    data = chance.randbytes(chance.choice([1, 8, 5000]))
                    os.pwrite(fd, data, chance.randrange(size - len(data)))
                copy.round()
                assert copy.whole(size) == os.pread(fd, size, 0)
                assert followed.changed() == ([], [])
        os.close(fd)


def test_what_has_gone_is_not_another(memfd: int, tmp_path: Path) -> None:
    here = found(memfd)
    other = SharedObject(here.inode + 1, here.name, here.path)
    with pytest.raises(NotFound):
        Followed(other, tmp_path)
    with pytest.raises(NotFound):
        Followed(SharedObject(here.inode, here.name, "/proc/self/fd/-1"), tmp_path)
