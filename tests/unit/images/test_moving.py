"""Counted bytes between every two kinds of descriptors."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from images.errors import Cancelled, NoSpace, PeerGone, Stalled, Truncated
from images.moving import FOR_EVER, Mover, available, enlarge_pipe, nonblocking
from tests.unit.images.fake_criu import InThread, read_all, write_all

DATA = os.urandom(3_000_001)
KINDS = ["pipe", "socket", "file"]


@pytest.fixture
def mover() -> Iterator[Mover]:
    with Mover(doing="moving", target="test", stall=20) as mover:
        yield mover


@contextlib.contextmanager
def source_of(kind: str, data: bytes, folder: Path) -> Iterator[int]:
    if kind == "file":
        (folder / "source").write_bytes(data)
        fd = os.open(folder / "source", os.O_RDONLY)
        yield fd
        os.close(fd)
        return
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        ends = socket.socketpair()
        reader, writer = ends[0].detach(), ends[1].detach()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError):
            write_all(writer, data)
        os.close(writer)

    feeding = InThread(feed)
    try:
        yield reader
    finally:
        os.close(reader)
        feeding.join()


@contextlib.contextmanager
def sink_of(kind: str, folder: Path) -> Iterator[tuple[int, Callable[[], bytes]]]:
    """A descriptor to write to, and what came out of it (to be called once)."""
    if kind in ("file", "append"):
        path = folder / "sink"
        flags = os.O_APPEND if kind == "append" else 0
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags)

        def content() -> bytes:
            os.close(fd)
            return path.read_bytes()

        yield fd, content
        return
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        ends = socket.socketpair()
        reader, writer = ends[0].detach(), ends[1].detach()
    draining = InThread(lambda: read_all(reader))

    def drained() -> bytes:
        os.close(writer)
        data = draining.join()
        assert isinstance(data, bytes)
        return data

    with nonblocking(writer):
        yield writer, drained


@pytest.mark.parametrize("way", ["spliced", "copied", "hashed"])
@pytest.mark.parametrize("sink_kind", [*KINDS, "append"])
@pytest.mark.parametrize("source_kind", KINDS)
def test_exactly_the_bytes_asked_for_arrive(
    mover: Mover, tmp_path: Path, source_kind: str, sink_kind: str, way: str
) -> None:
    hasher = hashlib.sha256()
    with source_of(source_kind, DATA, tmp_path) as source, sink_of(sink_kind, tmp_path) as sink:
        mover.move(
            source,
            sink[0],
            2_500_000,
            hashers=[hasher] if way == "hashed" else [],
            copy=way == "copied",
        )
        assert sink[1]() == DATA[:2_500_000]
        assert mover.read_exact(source, 1) == DATA[2_500_000:2_500_001], "not a byte too many"
    if way == "hashed":
        assert hasher.digest() == hashlib.sha256(DATA[:2_500_000]).digest()


@pytest.mark.parametrize("sink_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_a_source_that_ends_early_is_told(
    mover: Mover, tmp_path: Path, source_kind: str, sink_kind: str
) -> None:
    with source_of(source_kind, b"short", tmp_path) as source, sink_of(sink_kind, tmp_path) as sink:
        with pytest.raises(Truncated, match="5 bytes too early"):
            mover.move(source, sink[0], 10)
        sink[1]()


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("sink_kind", ["pipe", "socket"])
def test_a_sink_that_takes_nothing_or_goes_away_is_told(
    tmp_path: Path, sink_kind: str, copy: bool
) -> None:
    for gone in (False, True):
        if sink_kind == "pipe":
            reader, writer = os.pipe()
        else:
            ends = socket.socketpair()
            reader, writer = ends[0].detach(), ends[1].detach()
        if gone:
            os.close(reader)
        with (
            Mover(doing="moving", target="test", stall=0.1) as mover,
            source_of("pipe", DATA, tmp_path) as source,
            nonblocking(writer),
            pytest.raises(PeerGone if gone else Stalled),
        ):
            mover.move(source, writer, len(DATA), copy=copy)
        os.close(writer)
        if not gone:
            os.close(reader)


def test_a_source_that_gives_nothing_is_told_and_a_cancel_heard() -> None:
    reader, writer = os.pipe()
    with (
        Mover(doing="moving", target="test", stall=0.1) as mover,
        pytest.raises(Stalled, match=r"0\.1 s"),
    ):
        mover.read_exact(reader, 1)
    cancel = os.eventfd(1)
    with (
        Mover(doing="moving", target="test", cancel_fd=cancel) as mover,
        pytest.raises(Cancelled),
    ):
        mover.move(reader, writer, 1)
    for fd in (reader, writer, cancel):
        os.close(fd)


def test_where_silence_means_nothing_only_a_cancel_ends_the_waiting() -> None:
    reader, writer = os.pipe()
    cancel = os.eventfd(0)
    with Mover(doing="moving", target="test", stall=FOR_EVER, cancel_fd=cancel) as mover:
        os.write(writer, b"x")
        assert mover.read_exact(reader, 1) == b"x"
        os.eventfd_write(cancel, 1)
        with pytest.raises(Cancelled):
            mover.read_exact(reader, 1)
    for fd in (reader, writer, cancel):
        os.close(fd)


@pytest.mark.parametrize("copy", [False, True])
def test_a_full_disk_is_named(mover: Mover, tmp_path: Path, copy: bool) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with source_of("file", DATA, tmp_path) as source, pytest.raises(NoSpace):
        mover.move(source, full, 100, copy=copy)
    os.close(full)


@pytest.mark.parametrize("copy", [True, False])
def test_copied_bytes_do_not_follow_the_memory_that_they_came_from(
    mover: Mover, copy: bool
) -> None:
    """CRIU's pipes hold the tasks' own pages; spliced on, they still are. Only a copy is safe."""
    libc = ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:6] = b"before"
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    vector = (ctypes.c_size_t * 2)(address, 4096)
    first, second = os.pipe(), os.pipe()
    assert libc.vmsplice(first[1], vector, 1, 0) == 4096
    mover.move(first[0], second[1], 4096, copy=copy)
    memory[:6] = b"after!"
    assert os.read(second[0], 6) == (b"before" if copy else b"after!")
    for fd in (*first, *second):
        os.close(fd)


def test_the_blocking_mode_of_a_descriptor_comes_back() -> None:
    reader, writer = os.pipe()
    with nonblocking(writer):
        assert not os.get_blocking(writer)
    assert os.get_blocking(writer)
    os.close(reader)
    os.close(writer)


def test_pipes_grow_and_tell_what_they_hold() -> None:
    reader, writer = os.pipe()
    before = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    assert enlarge_pipe(writer) >= before
    os.write(writer, b"12345")
    assert available(reader) == 5
    os.close(reader)
    os.close(writer)
