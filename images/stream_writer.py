"""Writing a checkpoint stream; see bundle_stream for what it is."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

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
    RECORD,
    VERSION,
    Track,
    Type,
)
from images.errors import BadInput, ImageFault
from images.moving import STALL, Hasher, Mover, nonblocking
from images.parts import PartInfo, Sink, check_part


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
        self._open: dict[int, Track] = {}
        self._parts = 0
        self._size = 0
        self._records = 0
        self._torn = False
        self._fault: Exception | None = None
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
            self._open[part] = Track(kind, name, 0, blake3() if self._digest else None)
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
        if self._fault is not None:
            raise self._fault  # of another thread's part: its reason is ours
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
        except BaseException as error:
            self._torn = True
            if isinstance(error, Exception):
                self._fault = error
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
