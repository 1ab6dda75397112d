"""Starting CRIU behind the veil; see the package."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime import syscalls
from runtime.errors import SystemFault, Unsupported
from runtime.veil import filter as veil_filter
from runtime.veil import scan
from runtime.veil.answer import REFUSED

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_U32 = struct.Struct("=I")
_PAIR = struct.Struct("=2Q")
_READY = 0xFFFFFFFF
_STARTING = 30.0

Hide = Callable[[int], Sequence[tuple[int, int]]]
"""Process id (on this host) -> ranges [start, end) to hide, page-aligned; empty for a process that isn't ours."""


def require() -> None:
    """Raises Unsupported where the kernel lacks PAGEMAP_SCAN: CRIU then looks past the veil."""
    veil_filter.program()
    if not scan.supported():
        raise Unsupported(
            doing="hiding pages from",
            target="CRIU",
            why="this kernel has no PAGEMAP_SCAN (Linux 6.7)",
        )


class Veil:
    """Use as a context manager; the guard ends with it.

        with Veil(hide) as veil:
            process = subprocess.Popen(veil.wrap(criu_argv), pass_fds=[*veil.pass_fds, ...])
            veil.started()

    The process is CRIU itself: its id, streams and exit status are those of an ordinary start.
    """

    def __init__(self, hide: Hide) -> None:
        """Starts the guard. HIDE is called in a thread of this object, once per process, and may raise: the dump
        then fails and the fault is in `fault`. Raises Unsupported, SystemFault."""
        require()
        self._hide = hide
        self.fault: Exception | None = None
        """What `hide` raised."""
        self.hidden: dict[int, tuple[tuple[int, int], ...]] = {}
        """What was hidden of each process that CRIU came to, as it was told to the guard."""
        self._launcher, guards = socket.socketpair()
        self._control, theirs = socket.socketpair()
        try:
            with guards, theirs:
                fds = (guards.fileno(), theirs.fileno())
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_HERE / "guard.py"), *map(str, fds)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=fds,
                    cwd="/",
                    start_new_session=True,  # a terminal's ^C is the caller's to handle
                )
        except BaseException:
            self._launcher.close()
            self._control.close()
            raise
        self._thread = threading.Thread(target=self._answer, name="veil", daemon=True)
        try:
            self._control.settimeout(_STARTING)
            if self._receive_u32() != _READY:
                raise SystemFault(
                    doing="starting",
                    target="the veil's guard",
                    why=f"it ended with status {self._guard.wait()}",
                )
            self._control.settimeout(None)
            self._thread.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Veil:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """Descriptors that the launcher must inherit, until started()."""
        return (self._launcher.fileno(),)

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ARGV behind the veil."""
        launcher = [sys.executable, "-I", "-S", str(_HERE / "launcher.py")]
        program = veil_filter.program().hex()
        numbers = [str(self._launcher.fileno()), program, str(syscalls.NR_SECCOMP)]
        return [*launcher, *numbers, *argv]

    def started(self) -> None:
        """The launcher has its end of the socket: close ours, so that its failure is seen by the guard."""
        self._launcher.close()

    def close(self) -> None:
        """End the guard. A CRIU that still scans gets ENOSYS and fails."""
        self._launcher.close()
        with contextlib.suppress(OSError):  # the guard has gone
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._guard.wait(5.0)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if self._thread.ident is not None:
            self._thread.join()
        self._control.close()

    def _answer(self) -> None:
        """Tell the guard what is hidden, whenever it asks, until it goes."""
        while (pid := self._receive_u32()) is not None:
            try:
                ranges = checked(self._hide(pid))
                self.hidden[pid] = ranges
                data = _U32.pack(len(ranges)) + b"".join(_PAIR.pack(*pair) for pair in ranges)
            except Exception as fault:
                log.debug("what to hide of process %d isn't known: %s", pid, fault)
                self.fault = fault
                data = _U32.pack(REFUSED)
            try:
                self._control.sendall(data)
            except OSError:
                return

    def _receive_u32(self) -> int | None:
        """None at the end of the guard."""
        data = b""
        while len(data) < _U32.size:
            try:
                part = self._control.recv(_U32.size - len(data))
            except OSError:
                return None
            if not part:
                return None
            data += part
        number: int = _U32.unpack(data)[0]
        return number


def checked(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """RANGES sorted and joined where they touch. Raises ValueError unless aligned and not empty."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if start % scan.PAGE or end % scan.PAGE or start >= end:
            raise ValueError(f"not a range of pages: {start:#x}-{end:#x}")
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return tuple(out)
