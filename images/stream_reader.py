"""Reading a checkpoint stream; see bundle_stream for what it is. Nothing in it is trusted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
from blake3 import blake3

from images.bundle_records import (
    CLOSE,
    END,
    FLAG_DIGEST,
    HEAD,
    MAGIC,
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
    Track,
    Type,
)
from images.errors import Aborted, BadInput, Corrupt, ImageFault, WrongVersion
from images.moving import STALL, Hasher, Mover, nonblocking
from images.parts import Part, check_part

_OF_PARTS = frozenset({Type.PART_OPEN, Type.DATA, Type.PART_CLOSE})


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
        self._open: dict[int, Track] = {}
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
        self._open[part] = Track(kind, name, 0, blake3() if digested else None)
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
