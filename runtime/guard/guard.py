"""A process that traces CRIU's tasks in its place, and makes them whole again if CRIU is killed; see guardian.c.

    guard = Guard(programs)
    process = subprocess.Popen(...)  # CRIU, with guard.libraries, guard.environment and guard.pass_fds
    guard.started(process.pid)
    ...
    guard.close()  # CRIU has ended

What CRIU asks the kernel for is asked by the guardian, over shared memory: some 5 us for each time that it must wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import subprocess
from pathlib import Path

from runtime.freestanding import library, program

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_SIZE = 64 << 10
"""Of `struct shared`, and a little more."""
PATIENCE = 20.0
"""Seconds for the guardian to make whole what a CRIU that was killed has left. It gives up earlier by itself."""


class Guard:
    """Only on x86-64; elsewhere it does nothing, and CRIU traces by itself."""

    def __init__(self, programs: Path) -> None:
        """PROGRAMS: where what we compile lies."""
        self.libraries: list[Path] = []
        self.environment: dict[str, str] = {}
        self.pass_fds: tuple[int, ...] = ()
        """What CRIU inherits, until started()."""
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None
        if platform.machine() != "x86_64":
            return
        self._program = program(_HERE / "guardian.c", programs)
        self.libraries = [library(_HERE / "client.c", programs)]
        memory = os.memfd_create("ckpt-guard")
        os.ftruncate(memory, _SIZE)
        self.pass_fds = (memory, os.eventfd(0))
        self.environment = {"CKPT_GUARD": ",".join(map(str, self.pass_fds))}

    def started(self, criu: int) -> None:
        """CRIU is the process CRIU, and has not been let go to freeze. Returns when its requests are served."""
        if not self.pass_fds:
            return
        self._process = subprocess.Popen(
            [self._program, *map(str, self.pass_fds), str(criu)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=self.pass_fds,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._forget()
        assert self._process.stdout is not None
        with self._process.stdout as ready:
            ready.read(1)

    def close(self) -> None:
        """CRIU has ended. Returns when its tasks are let go."""
        self._forget()
        if self._process is None:
            return
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            log.warning("the guardian %d of a CRIU that ended does not end", self.pid)

    def _forget(self) -> None:
        for fd in self.pass_fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.pass_fds = ()
