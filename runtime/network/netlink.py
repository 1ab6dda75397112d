"""Routing netlink, as much of it as a container's network needs.

Why not a library: the process that plugs a restored container in is the monitor, which stays small,
and it does so inside the frozen window. Importing pyroute2 costs 185 ms and 25 MiB there; this file
costs little more than `socket` and `struct`, and a whole configuration travels in one datagram. For
the same reason there are no dataclasses in this module and its neighbours `links`, `plug` and
`announce`: `dataclasses` alone brings 3 MiB.

A request is built by the functions of `links` as a `Message`; a `Socket` belongs to the network
namespace that its opening thread was in, and stays there. Several messages go out in one sendmsg;
the kernel works them off in order and acknowledges each, also after one that failed. Numbers and
layouts: linux/netlink.h, linux/rtnetlink.h, rtnetlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
_NLM_F_ACK_TLVS = 0x200
_NLM_F_CAPPED = 0x100

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_NLMSGERR_ATTR_MSG = 1

_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_NETLINK_CAP_ACK = 10

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: len, type, flags, seq, pid
_ATTR = struct.Struct("=HH")  # nlattr: len, type
_RECEIVE = 256 * 1024  # larger than any dump's datagram: the kernel sizes them by what we offer


def _aligned(size: int) -> int:
    return (size + 3) & ~3


def attr(kind: int, payload: bytes) -> bytes:
    """One netlink attribute, padded."""
    size = _ATTR.size + len(payload)
    return _ATTR.pack(size, kind) + payload + bytes(_aligned(size) - size)


def u8(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=B", value))


def u32(kind: int, value: int) -> bytes:
    return attr(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def nested(kind: int, *parts: bytes) -> bytes:
    return attr(kind | _NLA_F_NESTED, b"".join(parts))


def parse_attrs(data: bytes | memoryview) -> dict[int, bytes]:
    """Attributes by type; of several of one type the last. Stops at the first malformed one."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTR.size <= len(data):
        size, kind = _ATTR.unpack_from(data, at)
        if size < _ATTR.size or at + size > len(data):
            break
        found[kind & _NLA_TYPE_MASK] = bytes(data[at + _ATTR.size : at + size])
        at += _aligned(size)
    return found


class Message:
    """A request: KIND and FLAGS of the header, BODY behind it, WHAT for the error's text.

    An errno in FINE counts as success: that is how a repeated request becomes idempotent.
    """

    __slots__ = ("body", "fine", "flags", "kind", "what")

    def __init__(
        self, kind: int, body: bytes, what: str, *, flags: int = 0, fine: tuple[int, ...] = ()
    ) -> None:
        self.kind = kind
        self.body = body
        self.what = what
        self.flags = flags
        self.fine = fine


class Socket:
    """A NETLINK_ROUTE socket of the calling thread's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            for option in (_NETLINK_EXT_ACK, _NETLINK_CAP_ACK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            # The kernel answers at once. A limit only turns a bug into an error instead of a hang;
            # rtnl_lock is global, and a mass removal of namespaces may hold it for seconds.
            self._socket.settimeout(60)
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, *messages: Message) -> None:
        """Send MESSAGES in one datagram and wait for every acknowledgement.

        Raises OSError for the first that failed (those behind it were tried all the same).
        """
        if not messages:
            return
        waiting: dict[int, Message] = {}
        datagram = b""
        for message in messages:
            self._sequence += 1
            waiting[self._sequence] = message
            datagram += self._packed(message, message.flags | NLM_F_ACK)
        self._socket.send(datagram)
        first: OSError | None = None
        while waiting:
            for kind, flags, sequence, body in self._received():
                done = waiting.pop(sequence, None) if kind == _NLMSG_ERROR else None
                if done is None:
                    continue
                error = _error_of(body, flags, done)
                first = first or error
        if first is not None:
            raise first

    def ask(self, message: Message) -> list[tuple[int, bytes]]:
        """Send one request and return its answers as (type, body); raises OSError.

        With NLM_F_DUMP in the message's flags: all of them. A dump that a change interrupted is
        taken again, since its halves do not fit together.
        """
        while True:
            answers, torn = self._ask_once(message)
            if not torn:
                return answers

    def _ask_once(self, message: Message) -> tuple[list[tuple[int, bytes]], bool]:
        dump = message.flags & NLM_F_DUMP == NLM_F_DUMP
        self._sequence += 1
        mine = self._sequence
        self._socket.send(self._packed(message, message.flags))
        answers: list[tuple[int, bytes]] = []
        torn = False
        while True:
            for kind, flags, sequence, body in self._received():
                if sequence != mine:
                    continue
                torn = torn or bool(flags & NLM_F_DUMP_INTR)
                if kind == _NLMSG_DONE:
                    return answers, torn
                if kind == _NLMSG_ERROR:
                    error = _error_of(body, flags, message)
                    if error is not None:
                        raise error
                    return answers, torn
                answers.append((kind, body))
                if not dump:
                    return answers, torn

    def _packed(self, message: Message, flags: int) -> bytes:
        size = _HEADER.size + len(message.body)
        head = _HEADER.pack(size, message.kind, flags | NLM_F_REQUEST, self._sequence, 0)
        return head + message.body + bytes(_aligned(size) - size)

    def _received(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = memoryview(self._socket.recv(_RECEIVE))
        at = 0
        while at + _HEADER.size <= len(data):
            size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            if size < _HEADER.size or at + size > len(data):
                raise OSError(errno.EBADMSG, "malformed netlink message")
            yield kind, flags, sequence, bytes(data[at + _HEADER.size : at + size])
            at += _aligned(size)


def _error_of(body: bytes, flags: int, message: Message) -> OSError | None:
    """The OSError that a struct nlmsgerr means, with the kernel's own words where it has any."""
    (code,) = struct.unpack_from("=i", body)
    if code == 0 or -code in message.fine:
        return None
    why = os.strerror(-code)
    if flags & _NLM_F_ACK_TLVS:
        # Without NLM_F_CAPPED the whole request is echoed behind the header.
        (echoed,) = struct.unpack_from("=I", body, 4)
        skip = 4 + (_HEADER.size if flags & _NLM_F_CAPPED else _aligned(echoed))
        words = parse_attrs(body[skip:]).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0")
        if words:
            why = f"{why}: {words.decode(errors='replace')}"
    return OSError(-code, why, message.what)
