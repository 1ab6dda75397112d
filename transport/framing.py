"""Messages on a byte stream.

A frame is a u32 (big-endian) length and then one msgpack map of that many bytes.  The peer is
authenticated by SSH, but it may be broken, of another version, or taken over: so nothing that it
sends is believed before it was measured.

What can go wrong, and what stands against it:

- a length that asks for gigabytes: refused before anything is collected;
- a small frame that unpacks into a huge tree (one byte makes an empty map of 64 bytes, or one
  level of nesting more): the headers are walked first, without building anything, and the number
  of nodes and the depth are bounded;
- text that is no UTF-8, extension types, keys that are no text, rubbish after the map: refused;
- one read that holds half a frame or several: the decoder doesn't care how bytes are cut.

The decoder is sans I/O: bytes in, messages out.  ``FrameLink`` adds blocking reads and writes.
"""

from __future__ import annotations

import logging
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import msgpack

from transport.errors import LinkLost, ProtocolFault, TimedOut, TransportFault

log = logging.getLogger(__name__)

Message = dict[str, Any]

MAX_FRAME = 8 * 1024 * 1024
MAX_NODES = 1 << 18  # values in one frame; some 30 MiB of Python objects at the very worst
MAX_DEPTH = 24
SEND_TIMEOUT = 60.0

_LENGTH = struct.Struct(">I")
# poll(2) promises that a pipe that is writable takes PIPE_BUF bytes without blocking (pipe(7)).
# Writing no more than that at once gives a timeout without O_NONBLOCK, which would change the
# open file description for every process that shares our stdio.
_WRITE_AT_ONCE = select.PIPE_BUF


def _bad(why: str) -> ProtocolFault:
    return ProtocolFault(
        doing="reading a message from",
        target="the peer",
        why=why,
        hint="is the other end ckpt, and does nothing else write to its standard output?",
    )


def encode(message: Mapping[str, Any], *, limit: int = MAX_FRAME) -> bytes:
    """One frame.  Raises ProtocolFault when the message is too large or not representable."""
    try:
        body: bytes = msgpack.packb(message, use_bin_type=True, strict_types=True)
    except (TypeError, ValueError, OverflowError) as problem:
        raise ProtocolFault(
            doing="packing", target="a message", why=f"not representable: {problem}"
        ) from problem
    if len(body) > limit:
        raise ProtocolFault(
            doing="packing",
            target="a message",
            why=f"{len(body)} bytes, more than the {limit} that a frame may have",
        )
    _survey(body)
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Bytes in any cut → messages.  After an error it refuses everything: the stream is lost."""

    def __init__(self, *, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._broken: ProtocolFault | None = None

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take bytes, return the messages that are complete now.  Raises ProtocolFault."""
        if self._broken is not None:
            raise self._broken
        self._buffer += data
        messages: list[Message] = []
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length == 0 or length > self._limit:
                    raise _bad(f"a frame of {length} bytes (allowed: 1 to {self._limit})")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                messages.append(_unpack(bytes(self._buffer[start + _LENGTH.size : end])))
                start = end
        except ProtocolFault as fault:
            self._broken = fault
            self._buffer.clear()
            raise
        if start:
            del self._buffer[:start]
        return messages


def _unpack(body: bytes) -> Message:
    _survey(body)
    try:
        message = msgpack.unpackb(
            body,
            raw=False,
            unicode_errors="strict",
            strict_map_key=True,
            max_str_len=len(body),
            max_bin_len=len(body),
            max_array_len=MAX_NODES,
            max_map_len=MAX_NODES,
            max_ext_len=0,
        )
    except Exception as problem:  # msgpack raises ValueError, UnpackException, Unicode… at will
        raise _bad(f"not a valid msgpack map: {problem}") from problem
    if not isinstance(message, dict):
        raise _bad("a message that is no map")
    return message


# msgpack's format by first byte (github.com/msgpack/msgpack/blob/master/spec.md): how many bytes
# of header and payload follow, or how many children.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8} | {
    0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8
}  # fmt: skip
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAYS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


def _survey(body: bytes) -> None:
    """Walk the headers of one msgpack value and refuse what would be too much to build."""
    at, nodes = 0, 0
    open_children = [1]  # how many values each open container still needs
    size = len(body)
    while open_children:
        if open_children[-1] == 0:
            open_children.pop()
            continue
        open_children[-1] -= 1
        nodes += 1
        if nodes > MAX_NODES:
            raise _bad(f"more than {MAX_NODES} values in one frame")
        if at >= size:
            raise _bad("a frame that ends within a value")
        kind = body[at]
        at += 1
        children = None
        if kind <= 0x7F or kind >= 0xE0:
            pass
        elif kind <= 0x8F:
            children = (kind & 0x0F) * 2
        elif kind <= 0x9F:
            children = kind & 0x0F
        elif kind <= 0xBF:
            at += kind & 0x1F
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            width = _SIZED.get(kind) or _ARRAYS.get(kind) or _MAPS.get(kind)
            if width is None:
                raise _bad(f"a value of type 0x{kind:02x}, which is not used here")
            count = int.from_bytes(body[at : at + width], "big")
            at += width
            if kind in _SIZED:
                at += count
            else:
                children = count * 2 if kind in _MAPS else count
        if at > size:
            raise _bad("a frame that ends within a value")
        if children is not None:
            if children > MAX_NODES:
                raise _bad(f"more than {MAX_NODES} values in one frame")
            open_children.append(children)
            if len(open_children) > MAX_DEPTH:
                raise _bad(f"values nested deeper than {MAX_DEPTH}")
    if at != size:
        raise _bad("rubbish after the message")


class ByteStream(Protocol):
    """What a link needs from below."""

    def receive(self, size: int, timeout: float | None) -> bytes:
        """Up to ``size`` bytes; b"" at the end.  Raises TimedOut after ``timeout`` seconds."""
        ...

    def send_all(self, data: bytes, timeout: float) -> None:
        """Every byte, or LinkLost/TimedOut: then an unknown part of it was sent."""
        ...

    def ended(self) -> TransportFault:
        """Why the stream ended, as the error that a reader should see."""
        ...

    def wake(self) -> None:
        """From another thread: receive() returns b"", now and for ever."""
        ...

    def close(self) -> None: ...


class FdStream:
    """A byte stream over file descriptors (a socket: give it twice).  Owns them."""

    def __init__(self, read_fd: int, write_fd: int, *, target: str = "the peer") -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._target = target
        self._closed = False
        self._woken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def receive(self, size: int, timeout: float | None) -> bytes:
        poller = select.poll()
        poller.register(self._read_fd, select.POLLIN)
        poller.register(self._woken, select.POLLIN)
        if not (ready := poller.poll(None if timeout is None else max(0, timeout) * 1000)):
            raise TimedOut(
                doing="waiting for", target=self._target, why=f"no answer in {timeout:g} s"
            )
        if any(fd == self._woken for fd, _ in ready):
            return b""
        try:
            return os.read(self._read_fd, size)
        except ConnectionError:
            return b""

    def send_all(self, data: bytes, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        view = memoryview(data)
        poller = select.poll()
        poller.register(self._write_fd, select.POLLOUT)
        try:
            while view:
                left = deadline - time.monotonic()
                if left <= 0 or not poller.poll(left * 1000):
                    raise TimedOut(
                        doing="sending to", target=self._target, why=f"stuck for {timeout:g} s"
                    )
                view = view[os.write(self._write_fd, view[:_WRITE_AT_ONCE]) :]
        except OSError as problem:
            raise LinkLost(
                doing="sending to",
                target=self._target,
                why=problem.strerror or str(problem),
                retry=True,
            ) from problem

    def ended(self) -> TransportFault:
        return LinkLost(
            doing="reading from", target=self._target, why="the connection was closed", retry=True
        )

    def wake(self) -> None:
        os.eventfd_write(self._woken, 1)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._woken)
            os.close(self._read_fd)
            if self._write_fd != self._read_fd:
                os.close(self._write_fd)


class FrameLink:
    """Messages over a byte stream: any thread may send, one thread at a time receives.

    A send that fails or times out may have left half a frame behind, so the link is dead after
    it: every later call raises the same fault.
    """

    def __init__(self, stream: ByteStream, *, limit: int = MAX_FRAME) -> None:
        self._stream = stream
        self._limit = limit
        self._decoder = FrameDecoder(limit=limit)
        self._ready: deque[Message] = deque()
        self._sending = threading.Lock()
        self._dead: TransportFault | None = None
        self._woken = False

    def send(self, message: Mapping[str, Any], *, timeout: float = SEND_TIMEOUT) -> None:
        """Send one message whole.  Raises LinkLost, TimedOut, ProtocolFault (not sent)."""
        frame = encode(message, limit=self._limit)
        with self._sending:
            if self._dead is not None:
                raise self._dead
            try:
                self._stream.send_all(frame, timeout)
            except TransportFault as fault:
                self._dead = fault
                raise

    def recv(self, timeout: float | None = None) -> Message:
        """The next message; waits ``timeout`` seconds (None: for ever).

        Raises TimedOut (the link stays usable), ProtocolFault, and at the end of the stream what
        the stream says about its end: LinkLost, RemoteMissing, …
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ready:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            data = self._stream.receive(65536, left)
            if not data:
                raise _woken() if self._woken else self._stream.ended()
            self._ready.extend(self._decoder.feed(data))
        return self._ready.popleft()

    def wake(self) -> None:
        """From another thread: recv() raises LinkLost, so that the link can be closed."""
        self._woken = True
        self._stream.wake()

    def close(self) -> None:
        """Close the stream below.  A thread that waits in recv() must be done by itself."""
        self._stream.close()

    def __enter__(self) -> FrameLink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _woken() -> LinkLost:
    return LinkLost(doing="reading from", target="the peer", why="the link is being closed")
