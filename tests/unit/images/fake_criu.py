"""A CRIU for tests: the client's side of ``--stream``, in a thread, without root.

It keeps to what CRIU 4.2 does: frames in native order, one dummy byte per pipe end, several pipes
open at once, inventory.img last in a dump and first in a restore.
"""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from images.criu_wire import CAPTURE_SOCKET, SERVE_SOCKET, build_request


class InThread:
    """Runs a function beside the test; join() gives its result or raises what it raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._result: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,))
        self._thread.start()

    def _run(self, function: Callable[[], object]) -> None:
        try:
            self._result = function()
        except BaseException as error:
            self._error = error

    def join(self) -> object:
        self._thread.join(30)
        assert not self._thread.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._result


def connect(directory: Path, name: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(20)
    peer.connect(str(directory / name))
    return peer


def send_fd(peer: socket.socket, fd: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    peer.sendmsg([b"\0"], rights)


class Dumper:
    """criu dump: open() gives the write end of an image's pipe."""

    def __init__(self, directory: Path) -> None:
        self.peer = connect(directory, CAPTURE_SOCKET)

    def open(self, name: str) -> int:
        self.peer.sendall(build_request(name))
        reader, writer = os.pipe()
        send_fd(self.peer, reader)
        os.close(reader)
        return writer

    def put(self, name: str, data: bytes) -> None:
        fd = self.open(name)
        write_all(fd, data)
        os.close(fd)

    def close(self) -> None:
        self.peer.close()


class Restorer:
    """criu restore: ask() gives the read end of an image's pipe, or None."""

    def __init__(self, directory: Path) -> None:
        self.peer = connect(directory, SERVE_SOCKET)

    def ask(self, name: str) -> int | None:
        self.peer.sendall(build_request(name))
        head = receive(self.peer, 4)
        (length,) = struct.unpack("=I", head)
        reply = receive(self.peer, length)
        assert reply in (b"\x08\x00", b"\x08\x01")
        if reply == b"\x08\x00":
            return None
        reader, writer = os.pipe()
        send_fd(self.peer, writer)
        os.close(writer)
        return reader

    def get(self, name: str) -> bytes | None:
        fd = self.ask(name)
        return None if fd is None else read_all(fd)

    def close(self) -> None:
        self.peer.close()


def receive(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = peer.recv(count - len(data))
        assert piece, "the streamer hung up"
        data += piece
    return data


def write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_all(fd: int) -> bytes:
    """Everything up to the end; closes fd."""
    with open(fd, "rb") as file:
        return file.read()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)
