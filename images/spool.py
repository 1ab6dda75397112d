"""Images in memory, between a checkpoint stream that fills them and a CRIU that reads them.

A restore asks for ``inventory.img`` first, which a dump writes last, so that everything has to be
somewhere in between. With nothing on disk that is memory: each part is a memfd. Bytes are spliced
into it and out of it and never mapped, so they don't count as resident memory of this process
(they do count to its memory cgroup, and are not swapped out before other pages).

A Spool is a Sink for the thread that receives and a Source for the thread that serves. A name that
comes twice replaces the first, which stays readable for whoever has it open. CRIU asks for several
names more than once, so nothing is given back before close(), except by release_as_read: pages
images are read once, front to back, and are nearly all of a checkpoint; with it, memory read by
CRIU is freed while CRIU fills the restored tasks, instead of having both in full.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Sequence

from images.errors import ImageFault, NoSpace
from images.moving import BUFFER, Hasher, Mover, os_fault
from images.parts import CRIU, Part, PartInfo, check_part
from images.sources import PENDING, Pending, Reader

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_RELEASE_STEP = 4 << 20
"""Bytes read before they are given back: one system call per 4 MiB."""


class _Blob:
    """One part: a memfd, how much of it is there, and whether that is all. Guarded by the spool."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = os.memfd_create(name[:200], os.MFD_CLOEXEC)
        self.size = 0
        self.whole = False
        self.users = 1  # the spool itself, then each writer and reader


class Spool:
    """Parts of one kind in memory. limit: bytes it may hold, then NoSpace."""

    def __init__(self, *, limit: int | None = None, release_as_read: bool = False) -> None:
        self._lock = threading.Lock()
        self._blobs: dict[str, _Blob] = {}
        self._limit = limit
        self._held = 0
        self._ended = False
        self._fault: ImageFault | None = None
        self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.release_as_read = release_as_read

    # ---- filling

    def open(self, name: str) -> _SpoolPart:
        """A new part; see parts.Sink. CRIU may start to read it before it is whole."""
        check_part(CRIU, name)
        try:
            blob = _Blob(name)
        except OSError as error:
            raise os_fault(error, doing="keeping in memory", target=name) from error
        with self._lock:
            old = self._blobs.get(name)
            self._blobs[name] = blob
            blob.users += 1
            if old is not None:
                self._drop(old)
        self._tell()
        return _SpoolPart(self, blob)

    def put(self, name: str, data: bytes) -> None:
        """A small whole part."""
        part = self.open(name)
        try:
            part.append(data)
        except BaseException:
            part.abandon()
            raise
        part.close()

    def end(self) -> None:
        """Nothing more will come: what isn't here doesn't exist."""
        with self._lock:
            self._ended = True
        self._tell()

    def fail(self, fault: ImageFault) -> None:
        """The rest will never come: whoever waits for it gets this fault."""
        with self._lock:
            if self._fault is None:
                self._fault = fault
        self._tell()

    # ---- reading

    def source(self) -> SpoolSource:
        """The face that criu_stream.Serve wants."""
        return SpoolSource(self)

    def infos(self) -> dict[str, PartInfo]:
        """Name and size of every whole part."""
        with self._lock:
            return {b.name: PartInfo(CRIU, b.name, b.size) for b in self._blobs.values() if b.whole}

    def read(self, name: str) -> bytes:
        """A whole part as bytes; only sensible for small ones. Raises KeyError."""
        with self._lock:
            blob = self._blobs[name]
            if not blob.whole:
                raise KeyError(name)
            return os.pread(blob.fd, blob.size, 0)

    @property
    def held(self) -> int:
        """Bytes in memory now."""
        with self._lock:
            return self._held

    def close(self) -> None:
        """Give all memory back. Readers that are still open keep theirs."""
        with self._lock:
            for blob in self._blobs.values():
                self._drop(blob)
            self._blobs.clear()
            if self._news >= 0:
                os.close(self._news)
                self._news = -1

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- inside

    def _tell(self) -> None:
        with self._lock:
            if self._news >= 0:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(self._news, 1)

    def _take_news(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._news)

    def _reserve(self, blob: _Blob, count: int) -> None:
        with self._lock:
            if self._limit is not None and self._held + count > self._limit:
                raise NoSpace(
                    doing="keeping in memory",
                    target=blob.name,
                    why=f"the images need more than the {self._limit} bytes allowed",
                )
            self._held += count

    def _grown(self, blob: _Blob, count: int) -> None:
        with self._lock:
            blob.size += count
        self._tell()

    def _finished(self, blob: _Blob, *, whole: bool) -> None:
        with self._lock:
            if whole:
                blob.whole = True
            elif self._blobs.get(blob.name) is blob:
                del self._blobs[blob.name]
                self._drop(blob)
            self._drop(blob)
        self._tell()

    def _drop(self, blob: _Blob) -> None:
        blob.users -= 1
        if not blob.users:
            self._held -= blob.size
            os.close(blob.fd)

    def _release(self, blob: _Blob, start: int, end: int) -> None:
        try:
            _punch(blob.fd, start, end - start)
        except OSError:
            self.release_as_read = False  # then it stays until close()


class _SpoolPart:
    def __init__(self, spool: Spool, blob: _Blob) -> None:
        self._spool = spool
        self._blob = blob
        self._done = False

    def take(self, mover: Mover, source: int, count: int, hashers: Sequence[Hasher] = ()) -> None:
        # In steps, so that a reader sees the bytes of a long record as they come.
        while count:
            step = min(count, 4 * BUFFER)
            self._spool._reserve(self._blob, step)
            mover.move(source, self._blob.fd, step, hashers=hashers)
            self._spool._grown(self._blob, step)
            count -= step

    def append(self, data: bytes) -> None:
        self._spool._reserve(self._blob, len(data))
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._blob.fd, rest) :]
        except OSError as error:
            raise os_fault(error, doing="keeping in memory", target=self._blob.name) from error
        self._spool._grown(self._blob, len(data))

    def close(self) -> None:
        if not self._done:
            self._done = True
            self._spool._finished(self._blob, whole=True)

    def abandon(self) -> None:
        if not self._done:
            self._done = True
            self._spool._finished(self._blob, whole=False)


class SpoolSource:
    """A Spool as criu_stream.Serve reads it."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    @property
    def news(self) -> int | None:
        return self._spool._news

    def took_news(self) -> None:
        self._spool._take_news()

    def open(self, name: str) -> Reader | None | Pending:
        spool = self._spool
        with spool._lock:
            blob = spool._blobs.get(name)
            if blob is not None:
                blob.users += 1
                return _SpoolReader(spool, blob)
            if spool._fault is not None:
                raise spool._fault
            return None if spool._ended else PENDING


class _SpoolReader:
    def __init__(self, spool: Spool, blob: _Blob) -> None:
        self._spool = spool
        self._blob = blob
        self._at = 0
        self._released = 0

    def move(self, pipe: int) -> int | None:
        with self._spool._lock:
            size, whole, fault = self._blob.size, self._blob.whole, self._spool._fault
        if self._at == size:
            if whole:
                return 0
            if fault is not None:
                raise fault
            return None
        moved = os.splice(
            self._blob.fd,
            pipe,
            size - self._at,
            offset_src=self._at,
            flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK,
        )
        self._at += moved
        if (
            self._spool.release_as_read
            and self._blob.name.startswith("pages-")
            and self._at - self._released >= _RELEASE_STEP
        ):
            # Pages that are still in the pipe are held by it; only whole pages are given back.
            end = self._at - self._at % 4096
            self._spool._release(self._blob, self._released, end)
            self._released = end
        return moved

    def close(self) -> None:
        with self._spool._lock:
            self._spool._drop(self._blob)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _punch(fd: int, offset: int, length: int) -> None:
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE: offset and length in bytes."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _libc.fallocate(fd, mode, offset, length) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"fd {fd}")


__all__ = ["Part", "Spool", "SpoolSource"]
