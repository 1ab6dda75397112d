"""Moving bytes between file descriptors without holding them in Python.

A checkpoint is mostly page data, gigabytes of it, and every hop (CRIU's pipe → lane → memory →
CRIU's pipe) is a pair of descriptors. Where one end is a pipe, splice(2) moves page references or
copies once inside the kernel; between two that are not, a pipe of our own stands in the middle;
from a file, sendfile(2). Only where a digest is wanted, or where the kernel refuses (O_APPEND
files, terminals), bytes pass through one fixed buffer.

**By reference means: not yet copied.** CRIU fills its pipes with vmsplice, so what lies in a pipe
*is* the dumped task's memory. Spliced on into another pipe or a socket, it still is, until the far
end reads it. That is fine while the tasks stay frozen or die, and wrong when they run on
(``--leave-running``): they would write into pages that are on their way. ``copy=True`` takes the
bytes out before move() returns; files and memfds always copy.

Nothing here waits for ever: each wait has a limit (``stall``), and the caller's ``cancel_fd`` ends
it. That works only if the descriptors don't block by themselves: a splice into a blocking socket
ignores SPLICE_F_NONBLOCK, hence Nonblocking.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import struct
import termios
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from images.errors import Cancelled, ImageFault, NoSpace, PeerGone, Stalled, Truncated

BUFFER = 1 << 20
"""Bytes of the copy buffer, and the size asked for pipes: the default fs.pipe-max-size."""
STALL = 60.0
"""Seconds without a byte after which the other end counts as dead."""
FOR_EVER = float("inf")
"""In its place where silence means nothing: another link tells whether the other end lives."""

_SPLICE = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_REFUSED = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EBADF})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})


class Hasher(Protocol):
    """What hashlib and blake3 objects have in common."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...


def enlarge_pipe(fd: int) -> int:
    """Give a pipe room for 1 MiB, or for what the system allows; returns its size in bytes.

    Larger pipes mean fewer wake-ups of CRIU. Unprivileged users may be at their quota
    (pipe(7), pipe-user-pages-soft): then the pipe keeps its size.
    """
    with contextlib.suppress(OSError):
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, BUFFER)
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/sys/fs/pipe-max-size", encoding="ascii") as limit,
    ):
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, int(limit.read()))
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def available(fd: int) -> int:
    """Bytes that lie in a pipe or socket now (FIONREAD)."""
    count: int = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0]
    return count


@contextlib.contextmanager
def nonblocking(fd: int) -> Iterator[None]:
    """O_NONBLOCK on a pipe or socket for the length of a with block; others are left alone."""
    mode = os.fstat(fd).st_mode
    before = os.get_blocking(fd)
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) or not before:
        yield
        return
    os.set_blocking(fd, False)
    try:
        yield
    finally:
        # The descriptor may have been closed by its owner; the flag then doesn't matter.
        with contextlib.suppress(OSError):
            os.set_blocking(fd, before)


class Mover:
    """Moves counted bytes from one descriptor to another, with one buffer and one pipe of its own.

    doing and target name the operation in errors. stall: seconds, or FOR_EVER. Not for use by two threads at
    once. Raises Truncated (the source ended early), Stalled, Cancelled, PeerGone, NoSpace.
    """

    def __init__(
        self, *, doing: str, target: str, stall: float = STALL, cancel_fd: int | None = None
    ) -> None:
        self.doing = doing
        self.target = target
        self.stall = stall
        self.cancel_fd = cancel_fd
        self._pipe: tuple[int, int] | None = None
        self._pipe_size = 0
        self._buffer: memoryview | None = None

    def close(self) -> None:
        """Give back the pipe and the buffer. May be called twice."""
        self._drop_pipe()
        self._buffer = None

    def __enter__(self) -> Mover:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- waiting

    def wait(self, fd: int, events: int) -> None:
        """Until fd is ready for events (or has hung up). Files are always ready."""
        poller = select.poll()
        poller.register(fd, events)
        if self.cancel_fd is not None:
            poller.register(self.cancel_fd, select.POLLIN)
        ready = poller.poll(None if self.stall == FOR_EVER else self.stall * 1000)
        if not ready:
            raise Stalled(
                doing=self.doing,
                target=self.target,
                why=f"the other end moved no byte for {self.stall:g} s",
                retry=True,
            )
        if self.cancel_fd is not None and any(which == self.cancel_fd for which, _ in ready):
            raise Cancelled(doing=self.doing, target=self.target, why="cancelled")

    # ---- small things, through Python

    def read_exact(self, fd: int, count: int, *, end_ok: bool = False) -> bytes:
        """count bytes; with end_ok, b"" when the source ends right here."""
        data = bytearray()
        while len(data) < count:
            self.wait(fd, select.POLLIN)
            try:
                piece = os.read(fd, min(count - len(data), BUFFER))
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._fault(error) from error
            if not piece:
                if end_ok and not data:
                    return b""
                raise self._short(count - len(data))
            data += piece
        return bytes(data)

    def write_all(self, fd: int, data: bytes | memoryview) -> None:
        """All of data, in pieces as the other end takes them."""
        rest = memoryview(data)
        while rest:
            self.wait(fd, select.POLLOUT)
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._fault(error) from error

    # ---- payload

    def move(
        self,
        source: int,
        sink: int,
        count: int,
        *,
        hashers: Sequence[Hasher] = (),
        copy: bool = False,
    ) -> None:
        """Exactly count bytes from source to sink.

        With hashers the bytes pass through the buffer and each hasher sees them; copy=True takes
        the same way without hashing (see above for when that is needed).
        """
        if hashers or copy:
            self._through_buffer(source, sink, count, hashers)
            return
        from_kind = stat.S_IFMT(os.fstat(source).st_mode)
        to_kind = stat.S_IFMT(os.fstat(sink).st_mode)
        if stat.S_IFIFO in (from_kind, to_kind):
            left = self._splice(source, sink, count)
        elif from_kind == stat.S_IFREG:
            left = self._sendfile(source, sink, count)
        else:
            left = self._through_pipe(source, sink, count)
        if left:
            self._through_buffer(source, sink, left, ())

    def discard(self, source: int, count: int, hashers: Sequence[Hasher] = ()) -> None:
        """Read count bytes and drop them."""
        while count:
            with self._borrow_buffer() as buffer:
                got = self._fill(source, buffer[: min(count, BUFFER)], count)
                for hasher in hashers:
                    hasher.update(buffer[:got])
            count -= got

    def _splice(self, source: int, sink: int, count: int) -> int:
        """One end is a pipe. Returns what is left when the kernel refuses to splice these two."""
        while count:
            self.wait(source, select.POLLIN)
            self.wait(sink, select.POLLOUT)
            moved = self._in_kernel(count, os.splice, source, sink, count, None, None, _SPLICE)
            if moved is None:
                return count
            count -= moved
        return 0

    def _sendfile(self, source: int, sink: int, count: int) -> int:
        while count:
            self.wait(sink, select.POLLOUT)
            # In steps, so that a cancel is seen on a slow disk.
            step = min(count, 16 * BUFFER)
            moved = self._in_kernel(count, os.sendfile, sink, source, None, step)
            if moved is None:
                return count
            count -= moved
        return 0

    def _through_pipe(self, source: int, sink: int, count: int) -> int:
        """Neither end is a pipe (socket → file, socket → socket): put ours in between."""
        if self._pipe is None:
            self._pipe = os.pipe()
            self._pipe_size = enlarge_pipe(self._pipe[1])
        out_of, into = self._pipe
        try:
            while count:
                self.wait(source, select.POLLIN)
                step = min(count, self._pipe_size)
                got = self._in_kernel(count, os.splice, source, into, step, None, None, _SPLICE)
                if got is None:
                    return count
                left = self._splice(out_of, sink, got)
                if left:
                    self._through_buffer(out_of, sink, left, ())
                count -= got
        except BaseException:
            # What is left in our pipe belongs to a stream that has just failed.
            self._drop_pipe()
            raise
        return 0

    def _in_kernel(self, missing: int, call: Callable[..., int], *args: object) -> int | None:
        """How many of the MISSING bytes it moved, 0 if that has to wait; None when it refuses these two."""
        try:
            moved = call(*args)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in _REFUSED:
                return None
            raise self._fault(error) from error
        if not moved:
            raise self._short(missing)
        return moved

    def _through_buffer(
        self, source: int, sink: int, count: int, hashers: Sequence[Hasher]
    ) -> None:
        while count:
            with self._borrow_buffer() as buffer:
                got = self._fill(source, buffer[: min(count, BUFFER)], count)
                piece = buffer[:got]
                for hasher in hashers:
                    hasher.update(piece)
                self.write_all(sink, piece)
            count -= got

    @contextlib.contextmanager
    def _borrow_buffer(self) -> Iterator[memoryview]:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(BUFFER))
        yield self._buffer

    def _fill(self, source: int, buffer: memoryview, wanted: int) -> int:
        while True:
            self.wait(source, select.POLLIN)
            try:
                got = os.readv(source, [buffer])
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._fault(error) from error
            if not got:
                raise self._short(wanted)
            return got

    def _drop_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None

    # ---- errors

    def _short(self, missing: int) -> ImageFault:
        return Truncated(
            doing=self.doing, target=self.target, why=f"it ends {missing} bytes too early"
        )

    def _fault(self, error: OSError) -> ImageFault:
        return os_fault(error, doing=self.doing, target=self.target)


def os_fault(error: OSError, *, doing: str, target: str) -> ImageFault:
    """The fault for an OSError of reading or writing image data."""
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return NoSpace(doing=doing, target=target, why=why, hint="free some space and try again")
    if error.errno in _GONE:
        return PeerGone(
            doing=doing, target=target, why=f"the other end has gone away: {why}", retry=True
        )
    return ImageFault(doing=doing, target=target, why=why)
