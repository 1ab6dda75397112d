"""The checkpoint stream: a whole checkpoint as one sequence of bytes.

It goes through pipes, sockets, SSH and files: ``ckpt dump -o -``, ``restore -``, ``checkpoints
export``, and a migration's lane. bundle_records has the layout. Several parts may be open at once,
since CRIU writes up to seven images at a time; a record says which part its payload belongs to.

**Payload is not seen here.** The writer asks the source pipe how much lies in it, writes a header
with that number and splices exactly so many bytes behind it; the reader splices them out again.
So one header of 16 bytes per pipe-full is all that Python handles.

**What is checked.** Each PART_CLOSE has the size; END has the totals and a blake3 digest of every
byte that isn't payload: headers, names, sizes, manifest. With digest=True each part's payload is
hashed too (and passes through a buffer for it); without it payload is trusted to what carries it:
SSH and TLS authenticate every byte, a file on a disk doesn't. The reader learns which it is from
the stream. A stream without END is truncated, whatever else is in it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
from blake3 import blake3

from images.bundle_records import (
    CLOSE,
    END,
    FLAG_DIGEST,
    HEAD,
    MAGIC,
    MAX_DATA,
    MAX_LENGTH,
    MAX_OPEN_PARTS,
    MAX_PARTS,
    RECORD,
    VERSION,
    Ended,
    ManifestRecord,
    Note,
    PartClosed,
    PartOpened,
    Payload,
    Record,
    Type,
)
from images.errors import Aborted, BadInput, Corrupt, ImageFault, WrongVersion
from images.moving import STALL, Hasher, Mover, nonblocking
from images.parts import Part, PartInfo, Sink, check_part

_OF_PARTS = frozenset({Type.PART_OPEN, Type.DATA, Type.PART_CLOSE})


@dataclass(slots=True)
class _Track:
    """One open part, on either side."""

    kind: str
    name: str
    size: int = 0
    hasher: blake3 | None = None


class StreamWriter:
    """Writes one checkpoint stream to fd, which it doesn't close.

    digest: hash every part's payload. copy: take payload out of its pages at once, needed when the
    dumped tasks run on before the reader has read (see moving); digest implies it. stall: seconds
    that the reader may take no byte. Methods may be called from several threads: each record is
    written whole. Raises PeerGone, NoSpace, Stalled, Cancelled. Use as a context manager.
    """

    def __init__(
        self,
        fd: int,
        *,
        digest: bool = False,
        copy: bool = False,
        stall: float = STALL,
        cancel_fd: int | None = None,
    ) -> None:
        self._fd = fd
        self._digest = digest
        self._copy = copy
        self._mover = Mover(
            doing="writing", target="the checkpoint stream", stall=stall, cancel_fd=cancel_fd
        )
        self._lock = threading.Lock()
        self._control = blake3()
        self._open: dict[int, _Track] = {}
        self._parts = 0
        self._size = 0
        self._records = 0
        self._torn = False
        self._ended = False
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._mover.close)
        self._stack.enter_context(nonblocking(fd))
        head = HEAD.pack(MAGIC, VERSION, 0)
        self._control.update(head)
        self._mover.write_all(fd, head)

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what the writer holds; the stream is only good after end()."""
        self._stack.close()

    @property
    def size(self) -> int:
        """Bytes of payload written so far."""
        return self._size

    def manifest(self, data: bytes) -> None:
        """The first record; a second one, later, replaces it (a dump knows its end only then)."""
        self._record(Type.MANIFEST, 0, data)

    def note(self, message: dict[str, object]) -> None:
        """A message for the reader; at most 1 MiB as msgpack."""
        self._record(Type.NOTE, 0, msgpack.packb(message))

    def open_part(self, kind: str, name: str) -> int:
        """Announce a part; returns its number in this stream."""
        check_part(kind, name)
        with self._lock:
            self._parts += 1
            part = self._parts
            self._open[part] = _Track(kind, name, 0, blake3() if self._digest else None)
            payload = msgpack.packb([kind, name])
            self._write(Type.PART_OPEN, part, payload, FLAG_DIGEST if self._digest else 0)
        return part

    def move(self, part: int, source: int, count: int, hashers: Sequence[Hasher] = ()) -> None:
        """Exactly count bytes of the descriptor source become payload of the part.

        The source must be sure to have them: fewer tear the stream (Truncated).
        """
        while count:
            step = min(count, MAX_DATA)
            with self._lock:
                track = self._open[part]
                self._header(Type.DATA, part, step)
                all_hashers = hashers if track.hasher is None else (*hashers, track.hasher)
                with self._tearing():
                    self._mover.move(source, self._fd, step, hashers=all_hashers, copy=self._copy)
                track.size += step
                self._size += step
            count -= step

    def write(self, part: int, data: bytes) -> None:
        """A small piece of payload from memory."""
        with self._lock:
            track = self._open[part]
            self._header(Type.DATA, part, len(data))
            with self._tearing():
                self._mover.write_all(self._fd, data)
            if track.hasher is not None:
                track.hasher.update(data)
            track.size += len(data)
            self._size += len(data)

    def close_part(self, part: int) -> PartInfo:
        """The part is whole; returns its size and digest."""
        with self._lock:
            track = self._open.pop(part)
            digest = track.hasher.digest() if track.hasher is not None else b""
            self._write(Type.PART_CLOSE, part, CLOSE.pack(track.size) + digest)
        return PartInfo(track.kind, track.name, track.size, digest or None)

    def add_file(self, kind: str, name: str, source: int) -> PartInfo:
        """A regular file, from its offset to its end, as one part."""
        part = self.open_part(kind, name)
        left = os.fstat(source).st_size - os.lseek(source, 0, os.SEEK_CUR)
        while left > 0:
            # Records of moderate length let other parts through.
            step = min(left, 16 << 20)
            self.move(part, source, step)
            left -= step
        return self.close_part(part)

    def put(self, kind: str, name: str, data: bytes) -> PartInfo:
        """A small whole part."""
        part = self.open_part(kind, name)
        if data:
            self.write(part, data)
        return self.close_part(part)

    def sink(self, kind: str) -> Sink:
        """This stream as a parts.Sink, for criu_stream.Capture."""
        return _StreamSink(self, kind)

    def end(self) -> None:
        """Everything was written. Raises BadInput while a part is open."""
        with self._lock:
            if self._open:
                names = ", ".join(track.name for track in self._open.values())
                raise BadInput(
                    doing="ending", target="the checkpoint stream", why=f"still open: {names}"
                )
            totals = (self._parts, self._size, self._records)
            self._write(Type.END, 0, END.pack(*totals, self._control.digest()))
            self._ended = True

    def abort(self, reason: str) -> None:
        """Tell the reader why there will be no more. Does nothing where that is impossible."""
        with self._lock:
            if self._torn or self._ended:
                return
            # The caller is on its way out with an error of its own.
            with contextlib.suppress(ImageFault):
                self._write(Type.ABORT, 0, reason.encode()[:4000])
            self._ended = True

    def _record(self, kind: Type, part: int, payload: bytes, flags: int = 0) -> None:
        with self._lock:
            self._write(kind, part, payload, flags)

    def _write(self, kind: Type, part: int, payload: bytes, flags: int = 0) -> None:
        if len(payload) > MAX_LENGTH[kind]:
            raise BadInput(
                doing="writing",
                target="the checkpoint stream",
                why=f"a {kind.name} record of {len(payload)} bytes; {MAX_LENGTH[kind]} are allowed",
            )
        self._header(kind, part, len(payload), flags, payload)

    def _header(
        self, kind: Type, part: int, length: int, flags: int = 0, payload: bytes = b""
    ) -> None:
        if self._torn or self._ended:
            raise BadInput(
                doing="writing", target="the checkpoint stream", why="it has already ended"
            )
        data = RECORD.pack(kind, flags, 0, part, length) + payload
        self._records += 1
        self._control.update(data)
        with self._tearing():
            self._mover.write_all(self._fd, data)

    @contextlib.contextmanager
    def _tearing(self) -> Iterator[None]:
        """A failure in here leaves half a record behind: nothing can follow it."""
        try:
            yield
        except BaseException:
            self._torn = True
            raise


class _StreamSink:
    def __init__(self, writer: StreamWriter, kind: str) -> None:
        self._writer = writer
        self._kind = kind

    def open(self, name: str) -> _StreamPart:
        return _StreamPart(self._writer, self._writer.open_part(self._kind, name))

    def put(self, name: str, data: bytes) -> None:
        self._writer.put(self._kind, name, data)


class _StreamPart:
    def __init__(self, writer: StreamWriter, part: int) -> None:
        self._writer = writer
        self._part = part

    def take(self, mover: Mover, source: int, count: int, hashers: Sequence[Hasher] = ()) -> None:
        # The writer's own mover: it knows what is being written, and has its own limits.
        self._writer.move(self._part, source, count, hashers)

    def close(self) -> None:
        self._writer.close_part(self._part)

    def abandon(self) -> None:
        """A part that is never closed: the stream can't end well any more."""


class StreamReader:
    """Reads one checkpoint stream from fd, which it doesn't close, and not a byte beyond its END.

    Iterate for records; after a Payload record fetch its bytes, else they are skipped. Ends after
    Ended. Raises WrongVersion, Corrupt, Truncated, Aborted, Stalled, PeerGone, Cancelled. After an
    error the reader is of no more use.
    """

    def __init__(self, fd: int, *, stall: float = STALL, cancel_fd: int | None = None) -> None:
        self._fd = fd
        self._mover = Mover(
            doing="reading", target="the checkpoint stream", stall=stall, cancel_fd=cancel_fd
        )
        self._control = blake3()
        self._open: dict[int, _Track] = {}
        self._parts = 0
        self._size = 0
        self._records = 0
        self._pending: Payload | None = None
        self._manifest_seen = False
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._mover.close)
        self._stack.enter_context(nonblocking(fd))
        self._begun = False

    def __enter__(self) -> StreamReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Record]:
        while True:
            record = self.next()
            yield record
            if isinstance(record, Ended):
                return

    def next(self) -> Record:
        """The next record; waits for it at most the stall time."""
        if not self._begun:
            self._begin()
        if self._pending is not None:
            self.skip_payload()
        kind, flags, part, length = self._header()
        if kind is Type.DATA:
            return self._data(part, length)
        payload = self._mover.read_exact(self._fd, length) if length else b""
        if kind is Type.END:
            return self._end(payload)
        self._control.update(payload)
        if kind is Type.MANIFEST:
            self._manifest_seen = True
            return ManifestRecord(payload)
        if kind is Type.ABORT:
            reason = payload.decode("utf-8", "replace")
            raise Aborted(doing="reading", target="the checkpoint stream", why=reason)
        if not self._manifest_seen:
            raise self._corrupt("it doesn't begin with a manifest")
        if kind is Type.NOTE:
            return Note(self._unpack(payload, dict))
        if kind is Type.PART_OPEN:
            return self._part_open(part, payload, flags)
        return self._part_close(part, payload)

    # ---- payload

    def move_payload(self, sink: int, hashers: Sequence[Hasher] = ()) -> None:
        """The payload of the last record into a descriptor (pipe, socket, file, memfd)."""
        payload = self._pending_payload()
        self._mover.move(self._fd, sink, payload.length, hashers=self._hashers(payload, hashers))
        self._moved(payload)

    def take_payload(self, part: Part) -> None:
        """The payload of the last record into a part of a Sink."""
        payload = self._pending_payload()
        part.take(self._mover, self._fd, payload.length, self._hashers(payload, ()))
        self._moved(payload)

    def skip_payload(self) -> None:
        """Read over the payload of the last record; its digest is still checked."""
        payload = self._pending_payload()
        self._mover.discard(self._fd, payload.length, self._hashers(payload, ()))
        self._moved(payload)

    def _pending_payload(self) -> Payload:
        if self._pending is None:
            raise BadInput(
                doing="reading", target="the checkpoint stream", why="no payload is due here"
            )
        return self._pending

    def _hashers(self, payload: Payload, more: Sequence[Hasher]) -> Sequence[Hasher]:
        hasher = self._open[payload.part].hasher
        return more if hasher is None else (*more, hasher)

    def _moved(self, payload: Payload) -> None:
        self._open[payload.part].size += payload.length
        self._size += payload.length
        self._pending = None

    # ---- records

    def _begin(self) -> None:
        self._begun = True
        head = self._mover.read_exact(self._fd, HEAD.size)
        magic, version, flags = HEAD.unpack(head)
        if magic != MAGIC:
            raise WrongVersion(
                doing="reading", target="the checkpoint stream", why="this is not one"
            )
        if version != VERSION or flags:
            raise WrongVersion(
                doing="reading",
                target="the checkpoint stream",
                why=f"its version is {version} (flags {flags:#x}); this ckpt reads {VERSION}",
                hint="use the same ckpt on both sides",
            )
        self._control.update(head)

    def _header(self) -> tuple[Type, int, int, int]:
        header = self._mover.read_exact(self._fd, RECORD.size)
        number, flags, zero, part, length = RECORD.unpack(header)
        try:
            kind = Type(number)
        except ValueError:
            raise self._corrupt(f"a record of type {number}") from None
        if zero or flags & ~(FLAG_DIGEST if kind is Type.PART_OPEN else 0):
            raise self._corrupt(f"unknown flags in a {kind.name} record")
        if (part != 0) != (kind in _OF_PARTS):
            raise self._corrupt(f"a {kind.name} record of part {part}")
        if length > MAX_LENGTH[kind]:
            raise self._corrupt(f"a {kind.name} record of {length} bytes")
        if kind is not Type.END:
            self._records += 1
            self._control.update(header)
        return kind, flags, part, length

    def _data(self, part: int, length: int) -> Payload:
        if part not in self._open:
            raise self._corrupt(f"payload for part {part}, which is not open")
        self._pending = Payload(part, length)
        return self._pending

    def _part_open(self, part: int, payload: bytes, flags: int) -> PartOpened:
        fields = self._unpack(payload, list)
        if len(fields) != 2 or not all(isinstance(item, str) for item in fields):
            raise self._corrupt("a part without kind and name")
        kind, name = fields
        try:
            check_part(kind, name)
        except BadInput as error:
            raise self._corrupt(f"a part named {error.target}") from error
        if part != self._parts + 1 or part > MAX_PARTS or len(self._open) >= MAX_OPEN_PARTS:
            raise self._corrupt(f"part {part} out of turn")
        self._parts = part
        digested = bool(flags & FLAG_DIGEST)
        self._open[part] = _Track(kind, name, 0, blake3() if digested else None)
        return PartOpened(part, kind, name, digested)

    def _part_close(self, part: int, payload: bytes) -> PartClosed:
        track = self._open.pop(part, None)
        if track is None:
            raise self._corrupt(f"the end of part {part}, which is not open")
        wanted = track.hasher.digest() if track.hasher is not None else b""
        if len(payload) != CLOSE.size + len(wanted):
            raise self._corrupt(f"a malformed end of part {track.name}")
        (size,) = CLOSE.unpack_from(payload)
        if size != track.size:
            raise self._corrupt(f"{track.name} has {track.size} bytes, {size} were announced")
        if payload[CLOSE.size :] != wanted:
            raise self._corrupt(f"{track.name} has not the digest that was announced")
        return PartClosed(part, track.kind, track.name, size, wanted or None)

    def _end(self, payload: bytes) -> Ended:
        if len(payload) != END.size:
            raise self._corrupt("a malformed end")
        parts, size, records, digest = END.unpack(payload)
        if self._open:
            names = ", ".join(track.name for track in self._open.values())
            raise self._corrupt(f"it ends with open parts: {names}")
        if (parts, size, records) != (self._parts, self._size, self._records):
            raise self._corrupt(
                f"{self._parts} parts of {self._size} bytes, {parts} of {size} were announced"
            )
        if digest != self._control.digest():
            raise self._corrupt("its records are not those that were written")
        return Ended(parts, size)

    def _unpack(self, payload: bytes, kind: type) -> Any:
        try:
            value = msgpack.unpackb(payload, strict_map_key=True)
        except (ValueError, msgpack.UnpackException) as error:
            raise self._corrupt(f"unreadable msgpack ({type(error).__name__})") from error
        if not isinstance(value, kind):
            raise self._corrupt("msgpack of another type than expected")
        return value

    def _corrupt(self, why: str) -> ImageFault:
        return Corrupt(doing="reading", target="the checkpoint stream", why=why)
