"""Whose memory it is: pages of a memfd belong to the cgroup of the process that allocates them, for good.

Private pages get to the restored tasks one by one and are theirs then. Shared memory is filled before there are tasks,
by a process that is no part of the container. So a small program in the container's cgroup allocates (fallocate(2))
what is then filled here. A page that is allocated twice costs nothing.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.errors import SystemFault

_PROGRAM = Path(__file__).with_name("charging.py")
_AT_ONCE = 2048
_STARTING = 120.0
Range = tuple[int, int]


class Charger:
    """begin() when the cgroup is there; who allocates before waits for that. Close it."""

    def __init__(self) -> None:
        self._begun = threading.Event()
        self._lock = threading.Lock()
        self._add: Callable[[int], None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def begin(self, add: Callable[[int], None]) -> None:
        """ADD: puts a process into the cgroup. The program is started when there is something for it."""
        self._add = add
        self._begun.set()

    def end(self) -> None:
        """All is allocated: the cgroup is the container's own again when this returns."""
        with self._lock:
            self._add = None
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None
            if self._control is not None:
                self._control.close()
                self._control = None
            self._begun.set()

    def allocate(self, fd: int, runs: Sequence[Range]) -> None:
        """These pages of the memfd are about to be written. Raises SystemFault: no memory, or nobody who does it."""
        for at in range(0, len(runs), _AT_ONCE):
            self._ask(fd, runs[at : at + _AT_ONCE])

    def _ask(self, fd: int, runs: Sequence[Range]) -> None:
        self._begun.wait(_STARTING)
        with self._lock:
            failed = self._answer(fd, runs)
        if failed:
            raise SystemFault(
                doing="allocating",
                target="shared memory for the container",
                why=os.strerror(failed),
            )

    def _answer(self, fd: int, runs: Sequence[Range]) -> int:
        control = self._started()
        try:
            socket.send_fds(control, [b"".join(struct.pack("=2Q", *run) for run in runs)], [fd])
            data = control.recv(4)
        except OSError as error:
            return error.errno or 5
        if not data:
            raise SystemFault(
                doing="allocating", target="shared memory for the container",
                why="the process in its cgroup was killed",
            )  # fmt: skip
        return int(struct.unpack("=I", data)[0])

    def _started(self) -> socket.socket:
        if self._add is None:
            raise SystemFault(
                doing="allocating", target="shared memory for the container", why="it was given up"
            )
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_PROGRAM), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),), cwd="/",
                )  # fmt: skip
            self._add(self._process.pid)
        return self._control
