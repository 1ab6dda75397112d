"""The tracker's end of the injector: starts it, asks it, starts another when it was killed."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

from runtime.errors import NotFound, SystemFault, TimedOut, Unsupported
from runtime.tracking import injector

log = logging.getLogger(__name__)

_PATIENCE = 20.0
"""Seconds for one injection, and for the injector's start; either takes milliseconds on an idle machine."""
_TRIES = 3


class Guard:
    """Opens userfaultfds of other processes. Use as a context manager, or `close`."""

    def __init__(self) -> None:
        self._peer: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.stopped_ns = 0
        """For how long the last injection stopped its process's main thread."""

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def open(self, pid: int) -> int:
        """A userfaultfd for the memory of PID. Raises NotFound, Unsupported (why, and retry), SystemFault, TimedOut."""
        answer, fds = self._ask(injector.OPEN, pid)
        code, _, self.stopped_ns = injector.ANSWER.unpack_from(answer)
        if code == injector.OPENED and len(fds) == 1:
            return fds[0]
        for fd in fds:
            os.close(fd)
        raise self._fault(pid, answer)

    def close_strays(self, pid: int) -> int:
        """Close what a killed injector left open in PID; how many descriptors. Raises as `open`."""
        answer, _ = self._ask(injector.CLOSE_STRAYS, pid)
        code, number, self.stopped_ns = injector.ANSWER.unpack_from(answer)
        if code == injector.CLOSED:
            return int(number)
        raise self._fault(pid, answer)

    def close(self) -> None:
        """The injector ends after what it is doing."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                # It waits for a thread whose registers are borrowed, in a frozen cgroup for instance. Not killed: it
                # finishes when the thread does.
                log.warning("the injector %d is still at work", self._process.pid)
            self._process = None

    def _ask(self, what: int, pid: int) -> tuple[bytes, list[int]]:
        for _ in range(_TRIES):
            peer = self._started()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.send(injector.REQUEST.pack(what, pid))
                try:
                    answer, fds, _, _ = socket.recv_fds(peer, injector.LONGEST, 1)
                except TimeoutError:
                    self._forget()
                    raise TimedOut(
                        doing="tracking",
                        target=f"process {pid}",
                        why="it is frozen, or very busy",
                        retry=True,
                    ) from None
                if len(answer) >= injector.ANSWER.size:
                    return answer, fds
            # It was killed, or ended because a thread was stuck in its hands. What it left is cleared by the next.
            self._forget()
        raise SystemFault(
            doing="tracking", target=f"process {pid}", why="the injector was killed", retry=True
        )

    def _fault(self, pid: int, answer: bytes) -> NotFound | Unsupported:
        code = answer[0]
        target = f"process {pid}"
        if code == injector.GONE:
            return NotFound(doing="tracking", target=target, why="it has ended")
        why = answer[injector.ANSWER.size :].decode(errors="replace")
        return Unsupported(
            doing="tracking", target=target, why=why, retry=code == injector.TRY_AGAIN
        )

    def _started(self) -> socket.socket:
        if self._peer is not None:
            return self._peer
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-m", "runtime.tracking.injector", str(theirs.fileno())]
            self._process = subprocess.Popen(
                argv,
                cwd="/",
                env={**os.environ, "PYTHONPATH": _path()},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.settimeout(_PATIENCE)
        try:
            if ours.recv(len(injector.READY)) != injector.READY:
                raise SystemFault(doing="starting", target="the injector", why="it ended at once")
        except TimeoutError:
            ours.close()
            raise TimedOut(
                doing="starting", target="the injector", why=f"not ready in {_PATIENCE:g} s"
            ) from None
        except BaseException:
            ours.close()
            raise
        self._peer = ours
        return ours

    def _forget(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process = None


def _path() -> str:
    """Where this very package lies, first."""
    own = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))
