"""A link and a lane in memory, for tests without SSH, keys or root.

They behave like the real ones, the ends included: descriptors, blocking, EPIPE, a ``finish`` that
waits for the other end's.
"""

from __future__ import annotations

import os
import socket
import threading

from transport.framing import FdStream, FrameLink
from transport.lanes import LaneReader, LaneWriter, broken, bulk_pipe, overdue


def link_pair() -> tuple[FrameLink, FrameLink]:
    """Two ends of one link.  Close both."""
    ours, theirs = socket.socketpair()
    ends = []
    for sock, name in ((ours, "the fake peer A"), (theirs, "the fake peer B")):
        fd = sock.detach()
        ends.append(FrameLink(FdStream(fd, fd, target=name)))
    return ends[0], ends[1]


class _Verdict:
    def __init__(self) -> None:
        self.known = threading.Event()
        self.good = False

    def give(self, good: bool) -> None:
        if not self.known.is_set():
            self.good = good
            self.known.set()


class FakeWriter(LaneWriter):
    kind = "fake"

    def __init__(self, fd: int, verdict: _Verdict) -> None:
        self.fd = fd
        self._verdict = verdict
        self._over = False

    def finish(self, timeout: float) -> None:
        if self._over:
            raise broken(self.kind, "it was ended before")
        self._over = True
        os.close(self.fd)
        if not self._verdict.known.wait(timeout):
            self._verdict.give(False)
            raise overdue(self.kind, timeout)
        if not self._verdict.good:
            raise broken(self.kind, "the reader gave it up")

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._verdict.give(False)
            os.close(self.fd)


class FakeReader(LaneReader):
    kind = "fake"

    def __init__(self, fd: int, verdict: _Verdict) -> None:
        self.fd = fd
        self._verdict = verdict
        self._over = False

    def finish(self, timeout: float) -> None:
        if self._over:
            raise broken(self.kind, "it was ended before")
        self._over = True
        os.close(self.fd)
        if self._verdict.known.is_set():
            raise broken(self.kind, "the writer aborted it")
        self._verdict.give(True)

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._verdict.give(False)
            os.close(self.fd)


def lane_pair() -> tuple[FakeWriter, FakeReader]:
    """Two ends of one lane.  Finish or abort both."""
    reader, writer = bulk_pipe()
    verdict = _Verdict()
    return FakeWriter(writer, verdict), FakeReader(reader, verdict)
