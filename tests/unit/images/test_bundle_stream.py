"""The checkpoint stream: what is written is read, and nothing else passes for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from images.bundle_records import (
    HEAD,
    MAGIC,
    RECORD,
    Ended,
    ManifestRecord,
    Note,
    PartClosed,
    PartOpened,
    Payload,
    Type,
)
from images.bundle_stream import StreamReader, StreamWriter
from images.errors import (
    Aborted,
    BadInput,
    Corrupt,
    ImageFault,
    PeerGone,
    Stalled,
    Truncated,
    WrongVersion,
)
from images.parts import CRIU, FILES, PartInfo
from images.receive import Received, receive
from images.spool import Spool
from tests.unit.images.fake_criu import InThread, write_all

BIG = os.urandom(3_000_000)


def written(folder: Path, write: Callable[[StreamWriter], None], **options: bool) -> bytes:
    """A stream as bytes, by way of a file."""
    path = folder / "stream"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    with StreamWriter(fd, **options) as writer:
        write(writer)
    os.close(fd)
    return path.read_bytes()


def read(folder: Path, data: bytes) -> tuple[Received, Spool]:
    path = folder / "read"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    spool = Spool()
    try:
        with StreamReader(fd) as reader:
            return receive(reader, {CRIU: spool, FILES: spool}), spool
    except BaseException:
        spool.close()
        raise
    finally:
        os.close(fd)


def small(writer: StreamWriter) -> None:
    writer.manifest(b"manifest")
    writer.note({"hello": 1})
    a = writer.open_part(CRIU, "core-1.img")
    b = writer.open_part(FILES, "upper.tar")
    writer.write(a, b"one")
    writer.write(b, b"two")
    writer.write(a, b"three")
    writer.close_part(a)
    writer.close_part(b)
    writer.end()


@pytest.fixture
def open_pair() -> Iterator[Callable[[str], tuple[int, int]]]:
    fds: list[int] = []

    def make(kind: str) -> tuple[int, int]:
        if kind == "pipe":
            pair = os.pipe()
        else:
            ends = socket.socketpair()
            pair = ends[0].detach(), ends[1].detach()
        fds.extend(pair)
        return pair

    yield make
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("options", [{}, {"digest": True}, {"copy": True}])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_parts_arrive_whole_through_pipes_and_sockets(
    open_pair: Callable[[str], tuple[int, int]], kind: str, options: dict[str, bool]
) -> None:
    reader_fd, writer_fd = open_pair(kind)
    source, feed = os.pipe()

    def write() -> None:
        with StreamWriter(writer_fd, **options) as writer:
            writer.manifest(b"m")
            part = writer.open_part(CRIU, "pages-1.img")
            feeding = InThread(lambda: write_all(feed, BIG))
            writer.move(part, source, 1_000_000)
            writer.put(FILES, "small", b"small")
            writer.move(part, source, 2_000_000)
            feeding.join()
            writer.close_part(part)
            writer.end()

    writing = InThread(write)
    with Spool() as spool, StreamReader(reader_fd) as reader:
        received = receive(reader, {CRIU: spool, FILES: spool})
        writing.join()
        assert spool.read("pages-1.img") == BIG
        assert spool.read("small") == b"small"
    assert received.size == len(BIG) + 5
    digest = blake3(BIG).digest() if options.get("digest") else None
    assert received.parts[1] == PartInfo(CRIU, "pages-1.img", len(BIG), digest)
    os.close(source)
    os.close(feed)


def test_the_records_come_in_order(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(written(tmp_path, small))
    fd = os.open(path, os.O_RDONLY)
    with StreamReader(fd) as reader:
        assert list(reader) == [
            ManifestRecord(b"manifest"),
            Note({"hello": 1}),
            PartOpened(1, CRIU, "core-1.img", False),
            PartOpened(2, FILES, "upper.tar", False),
            Payload(1, 3),
            Payload(2, 3),
            Payload(1, 5),
            PartClosed(1, CRIU, "core-1.img", 8, None),
            PartClosed(2, FILES, "upper.tar", 3, None),
            Ended(2, 11),
        ]
    os.close(fd)


def test_not_a_byte_after_the_end_is_read(
    open_pair: Callable[[str], tuple[int, int]], tmp_path: Path
) -> None:
    reader_fd, writer_fd = open_pair("socket")
    os.write(writer_fd, written(tmp_path, small) + b"the lane goes on")
    with StreamReader(reader_fd) as reader:
        for _ in reader:
            pass
    assert os.read(reader_fd, 100) == b"the lane goes on"


def test_a_second_manifest_replaces_the_first(tmp_path: Path) -> None:
    def write(writer: StreamWriter) -> None:
        writer.manifest(b"before")
        writer.put(CRIU, "a", b"")
        writer.manifest(b"after")
        writer.end()

    received, spool = read(tmp_path, written(tmp_path, write))
    spool.close()
    assert received.manifest == b"after"


@pytest.mark.parametrize("digest", [False, True])
def test_every_cut_is_found(tmp_path: Path, digest: bool) -> None:
    data = written(tmp_path, small, digest=digest)
    for length in range(len(data)):
        with pytest.raises(Truncated):
            read(tmp_path, data[:length])


def test_every_flipped_bit_of_a_stream_with_digests_is_found(tmp_path: Path) -> None:
    data = written(tmp_path, small, digest=True)
    for at in range(len(data) * 8):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        with pytest.raises(ImageFault):
            read(tmp_path, bytes(broken))


def test_without_digests_every_flipped_bit_outside_of_payload_is_found(tmp_path: Path) -> None:
    data = written(tmp_path, small)
    for at in range(len(data) * 8):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        try:
            _, spool = read(tmp_path, bytes(broken))
        except ImageFault:
            continue
        spool.close()
        start = at // 8
        assert any(
            data[start - n : start - n + len(word)] == word
            for word in (b"one", b"two", b"three")
            for n in range(len(word))
        )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tail=st.binary(max_size=200))
def test_garbage_gives_a_fault_of_one_line(tmp_path: Path, tail: bytes) -> None:
    for head in (b"", HEAD.pack(MAGIC, 1, 0)):
        with pytest.raises(ImageFault) as caught:
            read(tmp_path, head + tail)
        assert "\n" not in str(caught.value)


def record(
    kind: int, part: int, payload: bytes, flags: int = 0, length: int | None = None
) -> bytes:
    count = len(payload) if length is None else length
    return RECORD.pack(kind, flags, 0, part, count) + payload


HEADER = HEAD.pack(MAGIC, 1, 0) + record(Type.MANIFEST, 0, b"m")
OPEN = record(Type.PART_OPEN, 1, msgpack.packb([CRIU, "a"]))


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (record(99, 0, b""), "type 99"),
        (record(Type.NOTE, 0, b"\x80", length=2 << 20), "NOTE record of 2097152"),
        (record(Type.MANIFEST, 0, b"", length=1 << 40), "MANIFEST record"),
        (record(Type.PART_OPEN, 1, msgpack.packb([CRIU, "../../etc/x"])), "a part named"),
        (record(Type.PART_OPEN, 1, msgpack.packb([CRIU, ".hidden"])), "a part named"),
        (record(Type.PART_OPEN, 1, msgpack.packb(["etc", "x"])), "a part named"),
        (record(Type.PART_OPEN, 1, msgpack.packb(["criu"])), "kind and name"),
        (record(Type.PART_OPEN, 1, msgpack.packb(5)), "another type"),
        (record(Type.PART_OPEN, 1, b"\xc1"), "msgpack"),
        (record(Type.PART_OPEN, 7, msgpack.packb([CRIU, "a"])), "out of turn"),
        (OPEN + OPEN, "out of turn"),
        (record(Type.DATA, 1, b"x"), "not open"),
        (record(Type.PART_CLOSE, 1, bytes(8)), "not open"),
        (OPEN + record(Type.PART_CLOSE, 1, bytes(7)), "malformed"),
        (OPEN + record(Type.PART_CLOSE, 1, b"\1" + bytes(7)), "1 were announced"),
        (OPEN + record(Type.END, 0, bytes(56)), "open parts"),
        (record(Type.END, 0, bytes(56)), "announced"),
        (record(Type.END, 0, bytes(5)), "malformed"),
        (record(Type.NOTE, 3, b"\x80"), "of part 3"),
        (record(Type.NOTE, 0, b"\x80", flags=1), "flags"),
        (record(Type.NOTE, 0, b"\x90"), "another type"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, tail: bytes, why: str) -> None:
    with pytest.raises(Corrupt, match=why):
        read(tmp_path, HEADER + tail)


def test_a_stream_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="manifest"):
        read(tmp_path, HEAD.pack(MAGIC, 1, 0) + OPEN)


def test_versions_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(WrongVersion, match="version is 2"):
        read(tmp_path, HEAD.pack(MAGIC, 2, 0))
    with pytest.raises(WrongVersion, match="not one"):
        read(tmp_path, b"PK\3\4" + bytes(100))


def test_the_writers_reason_reaches_the_reader(tmp_path: Path) -> None:
    def write(writer: StreamWriter) -> None:
        writer.manifest(b"m")
        writer.open_part(CRIU, "a")
        writer.abort("the disk is full")
        writer.abort("not told twice")

    with pytest.raises(Aborted, match="the disk is full"):
        read(tmp_path, written(tmp_path, write))


def test_a_torn_record_is_not_followed_by_another(
    open_pair: Callable[[str], tuple[int, int]],
) -> None:
    reader_fd, writer_fd = open_pair("socket")
    source, feed = os.pipe()
    os.write(feed, b"four")
    os.close(feed)
    with StreamWriter(writer_fd) as writer:
        writer.manifest(b"m")
        part = writer.open_part(CRIU, "a")
        with pytest.raises(Truncated):
            writer.move(part, source, 5)
        writer.abort("impossible: the reader would take it for payload")
        with pytest.raises(Truncated):  # whoever writes next hears of the same
            writer.close_part(part)
    with socket.socket(fileno=os.dup(writer_fd)) as end:
        end.shutdown(socket.SHUT_WR)
    with Spool() as spool, StreamReader(reader_fd) as reader, pytest.raises(Truncated):
        receive(reader, {CRIU: spool})
    os.close(source)


def test_the_end_is_refused_while_a_part_is_open(tmp_path: Path) -> None:
    def write(writer: StreamWriter) -> None:
        writer.manifest(b"m")
        writer.open_part(CRIU, "left-open")
        with pytest.raises(BadInput, match="left-open"):
            writer.end()

    written(tmp_path, write)


def test_a_reader_that_goes_away_or_stalls_is_told(
    open_pair: Callable[[str], tuple[int, int]],
) -> None:
    for kind in ("pipe", "socket"):
        _, writer_fd = open_pair(kind)
        with StreamWriter(writer_fd, stall=0.1) as writer, pytest.raises(Stalled):
            while True:
                writer.note({"x": bytes(100_000)})
    reader_fd, writer_fd = os.pipe()
    with StreamWriter(writer_fd) as writer:
        os.close(reader_fd)
        with pytest.raises(PeerGone):
            writer.manifest(b"m")
    os.close(writer_fd)


def test_threads_may_write_parts_side_by_side(
    open_pair: Callable[[str], tuple[int, int]], tmp_path: Path
) -> None:
    reader_fd, writer_fd = open_pair("pipe")
    (tmp_path / "file").write_bytes(BIG)

    def add(writer: StreamWriter, n: int) -> None:
        with open(tmp_path / "file", "rb") as file:
            writer.add_file(FILES, f"file-{n}", file.fileno())

    def write() -> None:
        with StreamWriter(writer_fd, digest=True) as writer:
            writer.manifest(b"m")
            for thread in [InThread(lambda n=n: add(writer, n)) for n in range(4)]:
                thread.join()
            writer.end()

    writing = InThread(write)
    with Spool() as spool, StreamReader(reader_fd) as reader:
        receive(reader, {FILES: spool})
        writing.join()
        assert all(spool.read(f"file-{n}") == BIG for n in range(4))


def test_a_part_nobody_expects_is_refused_and_none_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(written(tmp_path, small))
    fd = os.open(path, os.O_RDONLY)
    with Spool() as spool, StreamReader(fd) as reader:
        with pytest.raises(BadInput, match="files/upper.tar"):
            receive(reader, {CRIU: spool})
        assert spool.infos() == {}
    os.close(fd)


def test_a_stream_can_be_read_from_a_file_opened_for_appending(tmp_path: Path) -> None:
    """ckpt dump -o - >> FILE: splice refuses such a file."""
    path = tmp_path / "appended"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    source, feed = os.pipe()
    os.write(feed, b"payload")
    with StreamWriter(fd) as writer:
        writer.manifest(b"m")
        part = writer.open_part(CRIU, "a")
        writer.move(part, source, 7)
        writer.close_part(part)
        writer.end()
    for left in (fd, source, feed):
        os.close(left)
    _, spool = read(tmp_path, path.read_bytes())
    assert spool.read("a") == b"payload"
    spool.close()
