"""A lane: one byte stream from the source to the destination, for bulk data.

The contract, for every kind (tests/contract/test_lanes.py checks it):

- ``LaneWriter.fd`` is the write end of a pipe (1 MiB where the host allows it), close-on-exec.
  Write or splice into it.  It blocks while the lane is full, and fails with EPIPE when the lane
  is broken; then ``finish`` raises the reason.  The writer owns it: don't close it yourself, and
  end whoever holds a duplicate (a child) before ``finish``, or no end of file comes.
- ``LaneReader.fd`` is a pipe or a socket: read it, or splice from it into a pipe.  End of file
  means that nothing more comes, **not** that everything came: the openssh and paramiko kinds
  can't tell a broken connection from a finished one.  So the sender says over the control link
  how many bytes there were (and their digest), and the reader compares.
- ``LaneReader.finish()`` says: I have it all and it is good.  ``LaneWriter.finish()`` returns only
  after that; it raises when the lane broke, the reader aborted, or the time is over.
- ``abort()`` ends a lane at once, from either end, at any time, also twice; the other end sees end
  of file or EPIPE, and its ``finish`` raises.
- After ``finish`` or ``abort`` no descriptor, thread or child of it is left.
- Bytes are encrypted and the ends authenticated.  Nothing is compressed.

Which kind?  PREFERENCE, in that order, the next when one can't be opened.  ``benchmarks/throughput.py``
gave that order: with 1 GiB over loopback on 2 processors, ``tls`` needs half the time and half the
CPU of plain ``ssh HOST 'cat > /dev/null'``, ``openssh`` and ``paramiko`` 0.8 of its time.  Only a
``tls`` lane needs a port to be reachable, and only ``openssh`` a second login.
"""

from __future__ import annotations

import fcntl
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from transport.errors import LinkLost, TimedOut, TransportFault

PREFERENCE = ("tls", "openssh", "paramiko")
PIPE_SIZE = 1 << 20
OPEN_TIMEOUT = 20.0


class LaneWriter(ABC):
    """The source's end."""

    kind: str
    fd: int
    token: str = ""  # its name in messages, where it was opened by asking

    @abstractmethod
    def finish(self, timeout: float) -> None:
        """Close ``fd``, wait until the reader has finished too.  The lane is gone afterwards.

        Raises LinkLost, TimedOut and whatever ended the lane early.
        """

    @abstractmethod
    def abort(self) -> None:
        """End it now.  The reader can't take it for a finished one."""


class LaneReader(ABC):
    """The destination's end."""

    kind: str
    fd: int

    @abstractmethod
    def finish(self, timeout: float) -> None:
        """All was read and is good: tell the writer.  The lane is gone afterwards.

        Raises LinkLost when the lane is known to have broken before the writer's end.
        """

    @abstractmethod
    def abort(self) -> None:
        """End it now; the writer gets EPIPE and its finish raises."""


def bulk_pipe() -> tuple[int, int]:
    """(read end, write end) of a pipe of 1 MiB, or as large as this host lets us have."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    for size in (PIPE_SIZE, PIPE_SIZE // 4):
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
            break
        except OSError:  # fs.pipe-max-size, or fs.pipe-user-pages-soft: a smaller pipe works too
            continue
    return reader, writer


def broken(kind: str, why: str) -> LinkLost:
    return LinkLost(doing="moving data over", target=f"the {kind} lane", why=why, retry=True)


def overdue(kind: str, timeout: float) -> TimedOut:
    return TimedOut(
        doing="finishing", target=f"the {kind} lane", why=f"not done after {timeout:g} s"
    )


class Worker:
    """A pump's thread: runs ``work`` once, keeps what went wrong, wakes who waits for it."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self.fault: TransportFault | None = None
        self._work = work
        self._name = name
        self._thread = threading.Thread(target=self._run, name=f"ckpt-{name}-lane", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except TransportFault as fault:
            self.fault = fault
        except Exception as problem:  # whatever ends a pump is the reason why the lane broke
            self.fault = broken(self._name, str(problem) or type(problem).__name__)

    def join(self, timeout: float) -> bool:
        """Whether it ended in time."""
        self._thread.join(timeout)
        return not self._thread.is_alive()
