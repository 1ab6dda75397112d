"""A stream from a stranger: nothing outside the directory, one clear error, never a crash."""

from __future__ import annotations

import os
import random
import stat
import struct
import tempfile
import threading
from pathlib import Path

import msgpack
import pytest
from blake3 import blake3

from runtime import tree
from runtime.errors import BadInput, RuntimeFault
from runtime.tree import stream

UID, GID = os.getuid(), os.getgid()


def record(kind: int, payload: bytes) -> bytes:
    return struct.pack("<BI", kind, len(payload)) + payload


def entry(path: bytes, mode: int, *, size=0, flags=1, target=b"", xattrs=(), **other) -> bytes:
    fields = [path, mode, UID, GID, 1000, size, flags, target, list(xattrs)]
    for index, value in other.items():
        fields[int(index.removeprefix("f"))] = value
    return record(stream.ENTRY, msgpack.packb(fields))


def file(path: bytes, content: bytes = b"x", **options) -> bytes:
    data = record(stream.DATA, struct.pack("<Q", 0) + content)
    return entry(path, stat.S_IFREG | 0o644, size=len(content), **options) + data


def link(path: bytes, first: bytes) -> bytes:
    return record(stream.LINK, msgpack.packb([path, first]))


def whole(*records: bytes, count: int | None = None) -> bytes:
    body = stream.MAGIC
    for one in records:
        body += struct.pack("<I", len(one)) + one
    if count is None:
        count = len(records)
    return body + struct.pack("<IQ", 0, count) + blake3(body).digest()


def receive(data: bytes, directory: Path):
    with tempfile.TemporaryFile() as source:
        source.write(data)
        source.seek(0)
        return tree.receive(source.fileno(), str(directory)), os.lseek(source.fileno(), 0, 1)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_bytes(b"precious")
    yield tmp_path / "inside"
    assert [p.name for p in (tmp_path / "outside").iterdir()] == ["precious"]
    assert (tmp_path / "outside/precious").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inside", "outside"]


def test_the_helpers_here_make_streams_that_are_understood(place):
    received, position = receive(whole(file(b"f", b"hello")) + b"next", place)
    assert (place / "f").read_bytes() == b"hello"
    assert received.entries == 1
    assert position == len(whole(file(b"f", b"hello")))  # not a byte of what follows


@pytest.mark.parametrize(
    "path",
    [b"../outside/f", b"/tmp/f", b"a/../../outside/f", b"", b".", b"a//b", b"a\0b", b"x" * 300],
)
def test_paths_that_lead_elsewhere(place, path):
    (place / "a").mkdir()
    for one in (file(path), link(path, b"a"), record(stream.REMOVE, path)):
        with pytest.raises(BadInput):
            receive(whole(one), place)


def test_links_are_never_passed(place):
    (place / "d").symlink_to("../outside")
    for one in (
        file(b"d/new"),
        entry(b"d/sub", stat.S_IFDIR | 0o755),
        entry(b"d/l", stat.S_IFLNK, target=b"x"),
        entry(b"d/p", stat.S_IFIFO),
        link(b"d/h", b"d"),
        link(b"h", b"d/precious"),
        record(stream.REMOVE, b"d/precious"),
        file(b"d/precious", flags=0),
    ):
        with pytest.raises(RuntimeFault):
            receive(whole(one), place)
    with pytest.raises(RuntimeFault):  # a link isn't written through either
        (place / "p").symlink_to("../outside/precious")
        receive(whole(file(b"p", flags=0)), place)
    receive(whole(file(b"p", b"replaced")), place)
    assert (place / "p").read_bytes() == b"replaced"


@pytest.mark.parametrize(
    "bad",
    [
        entry(b"f", stat.S_IFBLK | 0o600),
        entry(b"f", 0o600),
        entry(b"f", stat.S_IFIFO | 0o600, flags=0),
        entry(b"f", stat.S_IFLNK, target=b""),
        entry(b"f", stat.S_IFLNK, target=b"a\0b"),
        entry(b"f", stat.S_IFREG, f1=-1),
        entry(b"f", stat.S_IFREG, f1=1 << 20),
        entry(b"f", stat.S_IFREG, f2=2**32 - 1),
        entry(b"f", stat.S_IFREG, f3="root"),
        entry(b"f", stat.S_IFREG, f4=2**64 - 1),
        entry(b"f", stat.S_IFREG, f5=-1),
        entry(b"f", stat.S_IFREG, f5=True),
        entry(b"f", stat.S_IFREG, f6=8),
        entry(b"f", stat.S_IFREG, f7=5),
        entry(b"f", stat.S_IFREG, f8=[[b"user.x"]]),
        entry(b"f", stat.S_IFREG, f8=5),
        entry("text", stat.S_IFREG, f0="text"),
        entry(b"f", stat.S_IFREG, xattrs=[[b"user.x", bytes(70_000)]]),
        entry(b"", stat.S_IFREG),
        record(stream.DATA, struct.pack("<Q", 0) + b"orphan"),
        record(stream.DATA, b"123"),
        record(stream.ZERO, struct.pack("<QQ", 0, 5)),
        record(stream.ZERO, b"1"),
        entry(b"f", stat.S_IFREG, size=3) + record(stream.DATA, struct.pack("<Q", 1) + b"abc"),
        entry(b"f", stat.S_IFREG, size=3) + record(stream.ZERO, struct.pack("<QQ", 2, 1 << 63)),
        entry(b"f", stat.S_IFREG, flags=2),
        record(77, b""),
        record(stream.ENTRY, b"\xc1"),
        record(stream.ENTRY, msgpack.packb([1, 2])),
        record(stream.ENTRY, b"\x91" * 5000),
        struct.pack("<BI", stream.REMOVE, 50) + b"short",
        b"\1",
    ],
)
def test_records_that_make_no_sense(place, bad):
    with pytest.raises(RuntimeFault) as caught:
        receive(whole(bad), place)
    assert "\n" not in str(caught.value)
    assert not any(stat.S_ISBLK(p.lstat().st_mode) for p in place.iterdir())


def test_an_attribute_that_doesn_t_travel_isn_t_set(place):
    bad = entry(b"f", stat.S_IFREG | 0o600, xattrs=[[b"trusted.overlay.origin", b"handle"]])
    with pytest.raises(BadInput, match="attribute"):
        receive(whole(bad), place)


def test_a_stream_cut_anywhere_is_refused(place):
    data = whole(file(b"f", b"hello"), entry(b"d", stat.S_IFDIR | 0o755))
    for cut in range(len(data)):
        with pytest.raises(BadInput):
            receive(data[:cut], place)
    receive(whole(record(stream.REMOVE, b"f")), place)


def test_a_flipped_bit_is_noticed(tmp_path, place):
    source = tmp_path / "inside/source"
    source.mkdir()
    (source / "d").mkdir()
    (source / "d/f").write_bytes(os.urandom(3000))
    (source / "l").symlink_to("d/f")
    with tempfile.TemporaryFile() as sink:
        everything = tree.diff(tree.EMPTY, tree.snapshot(str(source)))
        tree.send(str(source), everything, sink.fileno())
        sink.seek(0)
        data = sink.read()
    chance = random.Random(1)
    for number in range(300):
        broken = bytearray(data)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        target = place / f"t{number}"
        target.mkdir()
        with pytest.raises(RuntimeFault):
            receive(bytes(broken), target)


def test_lengths_are_believed_only_within_bounds(place):
    with pytest.raises(BadInput, match="larger than"):
        receive(stream.MAGIC + struct.pack("<I", 0xFFFFFFFF), place)
    with pytest.raises(BadInput, match="no tree stream"):
        receive(b"GET / HTTP/1.1\r\n", place)


def test_many_streams_on_one_lane(tmp_path, place):
    reader, writer = os.pipe()
    for name in ("one", "two"):
        (place / name).mkdir()
    source = place / "source"
    source.mkdir()
    (source / "f").write_bytes(os.urandom(200_000))

    def give() -> None:
        sync = tree.Synchroniser(str(source))
        sync.round(writer)
        everything = tree.diff(tree.EMPTY, tree.snapshot(str(source)))
        tree.send(str(source), everything, writer)
        os.close(writer)

    giver = threading.Thread(target=give)
    giver.start()
    tree.receive(reader, str(place / "one"))
    tree.receive(reader, str(place / "two"))
    assert os.read(reader, 1) == b""
    giver.join()
    os.close(reader)
    assert tree.tree_digest(str(place / "one")) == tree.tree_digest(str(place / "two"))
