"""Connections to the monitor's control socket (SOCK_SEQPACKET: one packet, one message).

A packet that begins with `{` is a JSON request or answer. On a connection that is attached to a process, other packets
carry its streams; the first byte says which:

    to the client      o, e  output of stdout, stderr        x  JSON: the end
    from the client    i     input (alone: end of input)     k  a signal's number     w  rows,columns
"""

from __future__ import annotations

import json
import socket

# Beyond this much unsent output a client holds up the stream that it is attached to, as a pipe would.
HIGH_WATER = 128 * 1024
PACKET = 32 * 1024
# One for all: a buffer of this size for each packet would leave holes in the heap.
_received = bytearray(1 << 18)


class Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        self.attached: int | None = None
        self.waits_for: int | None = None
        self.unfinished = False  # a dumper that has something to sweep up if it dies
        self._queue: list[bytes] = []
        self._queued = 0

    @property
    def full(self) -> bool:
        return self._queued > HIGH_WATER

    @property
    def wants_to_write(self) -> bool:
        return bool(self._queue)

    def answer(self, **message: object) -> None:
        self.send(json.dumps(message).encode())

    def output(self, kind: bytes, data: bytes) -> None:
        for start in range(0, len(data), PACKET):
            self.send(kind + data[start : start + PACKET])

    def end(self, status: dict[str, object]) -> None:
        self.send(b"x" + json.dumps(status).encode())

    def send(self, packet: bytes) -> None:
        self._queue.append(packet)
        self._queued += len(packet)
        self.flush()

    def flush(self) -> bool:
        """Send what the socket takes; False when the client is gone."""
        try:
            while self._queue:
                self.sock.send(self._queue[0])
                self._queued -= len(self._queue.pop(0))
        except BlockingIOError:
            return True
        except OSError:
            self._queue = []
            self._queued = 0
            return False
        return True

    def receive(self) -> bytes | None:
        """One packet; b"" when nothing is there; None when the client is gone."""
        try:
            size = self.sock.recv_into(_received)
        except BlockingIOError:
            return b""
        except OSError:
            return None
        return bytes(memoryview(_received)[:size]) or None

    def close(self) -> None:
        self.sock.close()
