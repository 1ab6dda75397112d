"""Starting CRIU behind the veil; see the package."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime import preload
from runtime.freestanding import library

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("preload.c")
_VARIABLE = "CKPT_VEIL_FD"
_REFUSED = 0xFFFFFFFF
_AN_INODE = 0xFFFFFFFF
_PAGE = 4096
_U32 = struct.Struct("=I")
_PAIR = struct.Struct("=2Q")

Hide = Callable[[int], Sequence[tuple[int, int]]]
"""Process id (on this host) -> ranges [start, end) to hide, page-aligned; empty for a process that isn't ours."""
HideShared = Callable[[int, int], bool]
"""Device and inode, as in stat(2), of memory that processes share -> whether CRIU is to find it empty."""


def require(cache: Path) -> None:
    """Raises NotFound without a compiler and without a library in CACHE."""
    library(SOURCE, cache)


class Veil:
    """Use as a context manager.

        with Veil(hide, cache) as veil:
            process = subprocess.Popen(veil.wrap(criu_argv), pass_fds=[*veil.pass_fds, ...])
            veil.started()

    The process is CRIU itself: its id, streams and exit status are those of an ordinary start.
    """

    def __init__(
        self, hide: Hide, cache: Path, hide_shared: HideShared = lambda device, inode: False
    ) -> None:
        """HIDE is called in a thread of this object, once per process, and may raise: the dump then fails and the
        fault is in `fault`. HIDE_SHARED: the same, for each file. CACHE: where the compiled library lies. Raises
        Unsupported, NotFound.
        """
        require(cache)
        self._library = library(SOURCE, cache)
        self._hide = hide
        self._hide_shared = hide_shared
        self.fault: Exception | None = None
        """What `hide` raised."""
        self.hidden: dict[int, tuple[tuple[int, int], ...]] = {}
        """What was hidden of each process that CRIU came to, as it was told."""
        self._control, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._answer, name="veil", daemon=True)
        self._thread.start()

    def __enter__(self) -> Veil:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """Descriptors that CRIU must inherit, until started()."""
        return (self._theirs.fileno(),)

    def wrap(self, argv: Sequence[str], *, beside: Sequence[Path] = ()) -> list[str]:
        """The command line that runs ARGV behind the veil. BESIDE: other libraries to load."""
        variables = {_VARIABLE: str(self._theirs.fileno())}
        return preload.command(argv, [self._library, *beside], variables)

    def started(self) -> None:
        """CRIU has its end of the socket: close ours of it, so that its end is seen."""
        self._theirs.close()

    def close(self) -> None:
        """A CRIU that still scans fails at its next question."""
        self._theirs.close()
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._control.close()

    def _answer(self) -> None:
        """Tell what is hidden, whenever it is asked, until CRIU goes."""
        while (pid := self._receive()) is not None:
            try:
                data = self._told_inode() if pid == _AN_INODE else self._told_ranges(pid)
            except Exception as fault:
                log.debug("what to hide of process %d isn't known: %s", pid, fault)
                self.fault = fault
                data = _U32.pack(_REFUSED)
            try:
                self._control.sendall(data)
            except OSError:
                return

    def _told_ranges(self, pid: int) -> bytes:
        ranges = checked(self._hide(pid)) if pid != os.getpid() else ()
        self.hidden[pid] = ranges
        return _U32.pack(len(ranges)) + b"".join(_PAIR.pack(*pair) for pair in ranges)

    def _told_inode(self) -> bytes:
        device, inode = _PAIR.unpack(self._control.recv(_PAIR.size, socket.MSG_WAITALL))
        return _U32.pack(self._hide_shared(device, inode))

    def _receive(self) -> int | None:
        """The next process id, or _AN_INODE; None at the end of CRIU."""
        try:
            data = self._control.recv(_U32.size, socket.MSG_WAITALL)
        except OSError:
            return None
        return int(_U32.unpack(data)[0]) if len(data) == _U32.size else None


def checked(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """RANGES sorted and joined where they touch. Raises ValueError unless aligned and not empty."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if start % _PAGE or end % _PAGE or start >= end:
            raise ValueError(f"not a range of pages: {start:#x}-{end:#x}")
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return tuple(out)
