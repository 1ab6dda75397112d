"""The format of a tree on its way to another host.

    stream := MAGIC chunk* end
    chunk  := u32 length (1..MAX_CHUNK), then that many bytes: whole records
    end    := u32 0, u64 entries, 32 bytes: blake3 of everything before `end`
    record := u8 kind, u32 length, payload

    REMOVE  path
    ENTRY   msgpack array [path, mode with type, uid, gid, mtime_ns, size, flags, target, xattrs]
    DATA    u64 offset, bytes       belongs to the last ENTRY, which is a regular file
    ZERO    u64 offset, u64 length  the same; a range that must read as zeros
    LINK    msgpack array [path, first name]

All integers are little-endian. The order is: REMOVE (children first), ENTRY with its data (parents
first), LINK. A chunk is read whole, so memory is bounded and the descriptor stands exactly behind
the stream at its end: a lane can carry something else afterwards.

Records carry offsets, so a file that shrinks while it is sent leaves a gap rather than a broken
stream. The digest covers the bytes that were sent, from the same buffers.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import msgpack
from blake3 import blake3

from .beneath import MAX_PATH, check_path, shown
from .ids import MAX_ID
from .meta import Meta
from .xattrs import Xattrs, travels
from .xattrs import check as check_xattrs

MAGIC = b"ckpttre1"
MAX_CHUNK = 2 * 1024 * 1024
_DIRECT = 64 * 1024  # data from here on is written from where it lies
_FULL = 256 * 1024  # smaller records are collected to this size

REMOVE, ENTRY, DATA, ZERO, LINK = range(1, 6)
FRESH = 1  # make it anew, whatever is there
PATCH = 2  # the data records change some blocks of what is there

_RECORD = struct.Struct("<BI")
_OFFSET = struct.Struct("<Q")
_RANGE = struct.Struct("<QQ")
_LENGTH = struct.Struct("<I")
_END = struct.Struct("<Q32s")
_INT64 = 1 << 63


class Writer:
    """Collects records into chunks on `fd`. Raises OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = blake3()
        self._pending = bytearray()
        self.entries = 0
        self.bytes = 0
        self._out(MAGIC)

    def remove(self, path: bytes) -> None:
        """A name or empty directory to remove."""
        self.entries += 1
        self._record(REMOVE, path)

    def entry(
        self, path: bytes, kind: int, meta: Meta, size: int, flags: int, target: bytes
    ) -> None:
        """A file of any type. `kind`: its S_IFMT bits; `size` in bytes."""
        self.entries += 1
        fields = [
            path,
            kind | meta.mode,
            meta.uid,
            meta.gid,
            meta.mtime_ns,
            size,
            flags,
            target,
            meta.xattrs,
        ]
        self._record(ENTRY, msgpack.packb(fields))

    def link(self, path: bytes, first: bytes) -> None:
        """Another name of an entry."""
        self.entries += 1
        self._record(LINK, msgpack.packb([path, first]))

    def zero(self, offset: int, length: int) -> None:
        """A range of the last entry's content that became a hole."""
        self._record(ZERO, _RANGE.pack(offset, length))

    def data(self, offset: int, content: memoryview) -> None:
        """A piece of the last entry's content, at most 1 MiB."""
        length = _OFFSET.size + len(content)
        head = _RECORD.pack(DATA, length) + _OFFSET.pack(offset)
        if len(content) < _DIRECT:
            self._pending += head
            self._pending += content
            if len(self._pending) >= _FULL:
                self._flush()
            return
        self._flush()
        self._out(_LENGTH.pack(_RECORD.size + length) + head, content)

    def end(self) -> str:
        """Finish; returns the stream's digest in hexadecimal."""
        self._flush()
        digest = self._hash.digest()
        self._out(_LENGTH.pack(0) + _END.pack(self.entries, digest))
        return digest.hex()

    def _record(self, kind: int, payload: bytes) -> None:
        if len(self._pending) + len(payload) + _RECORD.size > MAX_CHUNK:
            self._flush()
        self._pending += _RECORD.pack(kind, len(payload))
        self._pending += payload
        if len(self._pending) >= _FULL:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._out(_LENGTH.pack(len(self._pending)), memoryview(self._pending))
            self._pending = bytearray()

    def _out(self, head: bytes, body: memoryview | bytes = b"") -> None:
        self._hash.update(head)
        self._hash.update(body)
        self.bytes += len(head) + len(body)
        done = os.writev(self._fd, [head, body]) if body else os.write(self._fd, head)
        if done < len(head):
            _write_all(self._fd, memoryview(head)[done:])
            done = len(head)
        _write_all(self._fd, memoryview(body)[done - len(head) :])


def _write_all(fd: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(fd, view) :]


class Reader:
    """Reads records from `fd` and not one byte more. Raises ValueError (with the reason), OSError.

    Yields (kind, payload); the payload is valid until the next step.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = blake3()
        self._buffer = memoryview(bytearray(_FULL))
        self.entries = 0
        self.bytes = 0
        self.digest = ""

    def records(self) -> Iterator[tuple[int, memoryview]]:
        """All records, then the digest is verified."""
        magic = bytes(self._take(len(MAGIC)))
        if magic != MAGIC:
            raise ValueError("it is no tree stream, or one of another version")
        self._hash.update(magic)
        while True:
            head = bytes(self._take(_LENGTH.size))
            (length,) = _LENGTH.unpack(head)
            if length == 0:
                break
            if length > MAX_CHUNK:
                raise ValueError(f"a chunk of {length} bytes is larger than {MAX_CHUNK}")
            chunk = self._take(length)
            self._hash.update(head)
            self._hash.update(chunk)
            yield from self._parse(chunk)
        entries, digest = _END.unpack(self._take(_END.size))
        if digest != self._hash.digest():
            raise ValueError("its digest doesn't match its bytes")
        if entries != self.entries:
            raise ValueError("it has another number of entries than it says")
        self.digest = digest.hex()

    def _parse(self, chunk: memoryview) -> Iterator[tuple[int, memoryview]]:
        position = 0
        while position < len(chunk):
            if len(chunk) - position < _RECORD.size:
                raise ValueError("a record is cut off")
            kind, length = _RECORD.unpack_from(chunk, position)
            position += _RECORD.size
            if length > len(chunk) - position:
                raise ValueError("a record is longer than its chunk")
            if kind in (REMOVE, ENTRY, LINK):
                self.entries += 1
            yield kind, chunk[position : position + length]
            position += length

    def _take(self, length: int) -> memoryview:
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(MAX_CHUNK))
        view = self._buffer[:length]
        done = 0
        while done < length:
            got = os.readv(self._fd, [view[done:]])
            if got == 0:
                raise ValueError("it ends before its end mark")
            done += got
        self.bytes += length
        return view


def parse_entry(payload: memoryview) -> tuple[bytes, int, Meta, int, int, bytes]:
    """(path, kind, meta, size, flags, target) of an ENTRY, every field checked for its type and
    range. Raises ValueError."""
    fields = _unpack(payload, 9)
    name, mode, uid, gid, mtime_ns, size, flags, target, pairs = fields
    path = b"" if name == b"" else _checked(name)
    bits = _whole(mode, 0xFFFF)
    if type(mtime_ns) is not int or not -_INT64 <= mtime_ns < _INT64:
        raise ValueError("a time is out of range")
    if type(target) is not bytes or len(target) > MAX_PATH:
        raise ValueError("a link's target is out of range")
    meta = Meta(bits & 0o7777, _whole(uid, MAX_ID), _whole(gid, MAX_ID), mtime_ns, _pairs(pairs))
    kind = bits & 0o170000
    return path, kind, meta, _whole(size, _INT64 - 1), _whole(flags, FRESH | PATCH), target


def parse_link(payload: memoryview) -> tuple[bytes, bytes]:
    """(path, first name) of a LINK. Raises ValueError."""
    path, first = _unpack(payload, 2)
    return _checked(path), _checked(first)


def parse_remove(payload: memoryview) -> bytes:
    """The path of a REMOVE. Raises ValueError."""
    return _checked(bytes(payload))


def parse_data(payload: memoryview) -> tuple[int, memoryview]:
    """(offset, bytes) of a DATA. Raises ValueError."""
    if len(payload) < _OFFSET.size:
        raise ValueError("a data record is cut off")
    return _OFFSET.unpack_from(payload)[0], payload[_OFFSET.size :]


def parse_zero(payload: memoryview) -> tuple[int, int]:
    """(offset, length) of a ZERO. Raises ValueError."""
    if len(payload) != _RANGE.size:
        raise ValueError("a zero record has a wrong length")
    offset, length = _RANGE.unpack(payload)
    return offset, length


def _unpack(payload: memoryview, count: int) -> tuple[object, ...]:
    try:
        fields = msgpack.unpackb(payload, use_list=False, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError("a record is no valid msgpack") from error
    if type(fields) is not tuple or len(fields) != count:
        raise ValueError("a record has a wrong number of fields")
    return fields


def _checked(path: object) -> bytes:
    if type(path) is not bytes:
        raise ValueError("a path is no byte string")
    check_path(path)
    return path


def _whole(value: object, largest: int) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError("a number is out of range")
    return value


def _pairs(pairs: object) -> Xattrs:
    if type(pairs) is not tuple or len(pairs) > 1024:
        raise ValueError("extended attributes are malformed")
    for pair in pairs:
        if (
            type(pair) is not tuple
            or len(pair) != 2
            or type(pair[0]) is not bytes
            or type(pair[1]) is not bytes
            or len(pair[0]) > 255
        ):
            raise ValueError("extended attributes are malformed")
        if not travels(pair[0], overlay=True):
            raise ValueError(f"the attribute {shown(pair[0])} doesn't travel")
    check_xattrs(pairs)
    return pairs
