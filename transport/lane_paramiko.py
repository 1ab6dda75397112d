"""The ``paramiko`` lane: a channel of the session itself, fed by a thread.

Slower than the others, as every byte goes through Python, and it shares the session's connection.
It works whenever the session does: it needs neither a second login nor an open port.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence

from transport.lane_handover import READY
from transport.lanes import OPEN_TIMEOUT, LaneWriter, Worker, broken, bulk_pipe, overdue
from transport.ssh import Session

_KIND = "paramiko"
_CHUNK = 256 * 1024


class ParamikoWriter(LaneWriter):
    kind = _KIND

    def __init__(
        self, session: Session, argv: Sequence[str], *, timeout: float = OPEN_TIMEOUT
    ) -> None:
        """Start ``argv`` (the lane process) at the other host and wait until it stands there.

        Raises RemoteMissing, LinkLost, TimedOut.
        """
        self._over = False
        self._process = session.open_command(argv)
        try:
            deadline = time.monotonic() + timeout
            seen = b""
            while READY not in seen:
                data = self._process.receive(4096, max(0.0, deadline - time.monotonic()))
                if not data:
                    raise self._process.ended()
                seen = (seen + data)[-4096:]
        except BaseException:
            self._process.close()
            raise
        self._reader, self.fd = bulk_pipe()
        # Wakes the pump without closing the pipe, which would look like the end of the data.
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._pump = Worker(self.kind, self._run)

    def _run(self) -> None:
        try:
            poller = select.poll()
            poller.register(self._reader, select.POLLIN)
            poller.register(self._wake, select.POLLIN)
            while True:
                ready = {fd for fd, _ in poller.poll()}
                if self._wake in ready:
                    raise broken(self.kind, "it was aborted")
                data = os.read(self._reader, _CHUNK)
                if not data:
                    self._process.close_stdin()
                    return
                self._process.send_all(data, timeout=60.0)
        finally:
            os.close(self._reader)  # a writer gets EPIPE from now on

    def finish(self, timeout: float) -> None:
        if self._over:
            raise broken(self.kind, "it was ended before")
        os.close(self.fd)
        self.fd = -1
        deadline = time.monotonic() + timeout
        try:
            if not self._pump.join(timeout):
                raise overdue(self.kind, timeout)
            if self._pump.fault is not None:
                raise self._pump.fault
            status = self._process.wait(max(0.1, deadline - time.monotonic()))
            if status != 0:
                raise self._process.ended()
        finally:
            self.abort()

    def abort(self) -> None:
        if self._over:
            return
        self._over = True
        os.eventfd_write(self._wake, 1)
        self._process.close()  # ends a send that waits for the window
        self._pump.join(10)
        if self.fd >= 0:
            os.close(self.fd)
        os.close(self._wake)
