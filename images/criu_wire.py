"""The frames of CRIU's ``--stream`` protocol, and the socket they come over.

A frame is a u32 in native byte order, then that many bytes of protobuf. CRIU sends
``img_streamer_request_entry {required string filename = 1}``; on a restore the streamer answers
``img_streamer_reply_entry {required bool exists = 1}`` (CRIU, images/img-streamer.proto). Then one
dummy byte brings one end of a pipe by SCM_RIGHTS.

The two messages have one field each and are coded here by hand: a monitor that captures a dump
need not load protobuf for them.

The parsing of bytes is separate from the socket. Trap: the byte with the descriptor must be read
by a recvmsg of its own; a read that runs over it loses the descriptor. So frames are read exactly.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct

from images.errors import BadInput, ImageFault, StreamerFault
from images.moving import Mover, os_fault
from images.parts import CRIU, check_part

CAPTURE_SOCKET = "streamer-capture.sock"
SERVE_SOCKET = "streamer-serve.sock"

MAX_FRAME = 4096
"""Bytes. CRIU's names are short ("pages-shmem-12345678.img"); more is not CRIU."""

_LENGTH = struct.Struct("=I")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class FrameFault(ValueError):
    """These bytes are not a request."""


def parse_request(message: bytes) -> str:
    """The file name in a request message. Raises FrameFault."""
    name: bytes | None = None
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            length, at = _varint(message, at)
            if length > len(message) - at:
                raise FrameFault("a field is longer than its message")
            if field == 1:
                name = message[at : at + length]
            at += length
        else:
            raise FrameFault(f"wire type {kind}")
    if at != len(message):
        raise FrameFault("a field is longer than its message")
    if name is None:
        raise FrameFault("no file name")
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise FrameFault("a file name that is not ASCII") from None


def build_request(name: str) -> bytes:
    """A request as a frame, as CRIU sends it (for simulators)."""
    raw = name.encode()
    message = b"\x0a" + _build_varint(len(raw)) + raw
    return _LENGTH.pack(len(message)) + message


def build_reply(exists: bool) -> bytes:
    """The answer to a restoring CRIU, as a frame."""
    return _LENGTH.pack(2) + bytes((0x08, exists))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise FrameFault("it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise FrameFault("a number of more than 10 bytes")


def _build_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Listener:
    """The socket that CRIU connects to, in its ``-D`` directory. It is there once this is made.

    directory: a path or an open directory descriptor. CRIU opens ``<-D>/<name>`` itself and cuts
    that path off at 107 bytes without a word, so that a short ``-D`` is the caller's duty; here
    the bind goes through /proc/self/fd and any length is fine.
    """

    def __init__(self, directory: str | int, name: str) -> None:
        self._name = name
        try:
            if isinstance(directory, int):
                self._directory = os.dup(directory)
            else:
                self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise os_fault(error, doing="opening", target=str(directory)) from error
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._unlink()  # what an aborted run left
            self._socket.bind(f"/proc/self/fd/{self._directory}/{name}")
            self._socket.listen(1)
            self._socket.setblocking(False)
        except OSError as error:
            self.close()
            raise os_fault(error, doing="listening on", target=name) from error

    def accept(self, mover: Mover) -> socket.socket:
        """CRIU's one connection; the socket's name is gone afterwards."""
        while True:
            mover.wait(self._socket.fileno(), select.POLLIN)
            try:
                peer, _ = self._socket.accept()
            except BlockingIOError:
                continue
            self.close()
            peer.setblocking(False)
            return peer

    def close(self) -> None:
        if self._directory >= 0:
            self._unlink()
            os.close(self._directory)
            self._directory = -1
            self._socket.close()

    def _unlink(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._directory)


def receive_request(peer: socket.socket, mover: Mover) -> str | None:
    """The next file name CRIU asks for; None when it has closed the socket in good order."""
    head = mover.read_exact(peer.fileno(), _LENGTH.size, end_ok=True)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME:
        raise _garbage(mover, f"a frame of {length} bytes")
    try:
        name = parse_request(mover.read_exact(peer.fileno(), length))
        check_part(CRIU, name)
    except FrameFault as error:
        raise _garbage(mover, str(error)) from error
    except BadInput as error:
        raise _garbage(mover, f"the file name {error.target}") from error
    return name


def send_reply(peer: socket.socket, mover: Mover, exists: bool, along: int | None) -> None:
    """The answer to a request; with the descriptor ALONG, if there is one."""
    reply = build_reply(exists)
    done = 0
    if along is not None:
        mover.wait(peer.fileno(), select.POLLOUT)
        try:
            done = socket.send_fds(peer, [reply], [along])
        except OSError as error:
            raise os_fault(error, doing=mover.doing, target=mover.target) from error
    mover.write_all(peer.fileno(), reply[done:])


def receive_pipe(peer: socket.socket, mover: Mover) -> int:
    """The pipe end that follows a request; the caller closes it."""
    mover.wait(peer.fileno(), select.POLLIN)
    try:
        data, ancillary, flags, _ = peer.recvmsg(
            1, socket.CMSG_SPACE(4 * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except OSError as error:
        raise os_fault(error, doing=mover.doing, target=mover.target) from error
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if len(data) != 1 or len(fds) != 1 or flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise _garbage(mover, f"{len(data)} bytes with {len(fds)} descriptors, not one pipe")
    return fds[0]


def _garbage(mover: Mover, what: str) -> ImageFault:
    return StreamerFault(
        doing=mover.doing,
        target=mover.target,
        why=f"not CRIU's streaming protocol: {what}",
        hint="is this CRIU 4.1 or newer?",
    )
