"""The ``openssh`` lane: the OpenSSH client as a pump.

A child ``ssh`` has a pipe as its standard input; what is spliced into that pipe is encrypted by
OpenSSH's own C code, in a process of its own, at both ends.  It goes by the same configuration,
known hosts and keys as the session (see ssh_settings).

The child dies with the lane: it ends at the end of its input, or when it is killed, and when we
are killed the pipe closes by itself.  PR_SET_PDEATHSIG is not used: it would fire when the thread
that started the child ends, not the process.  A dead network is noticed by ServerAliveInterval.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from transport.errors import RemoteMissing, TransportFault, one_line
from transport.lane_handover import READY
from transport.lanes import OPEN_TIMEOUT, LaneWriter, broken, bulk_pipe, overdue
from transport.ssh import Session

_KIND = "openssh"


class OpensshWriter(LaneWriter):
    kind = _KIND

    def __init__(
        self, session: Session, argv: Sequence[str], *, timeout: float = OPEN_TIMEOUT
    ) -> None:
        """Start ``argv`` (the lane process) at the other host and wait until it stands there.

        Raises RemoteMissing, LinkLost, TimedOut.
        """
        self._over = False
        self._errors: IO[bytes] = tempfile.TemporaryFile(prefix="ckpt-ssh-")  # noqa: SIM115
        reader, self.fd = bulk_pipe()
        try:
            self._ssh = subprocess.Popen(
                [*session.config.argv(session.target), shlex.join(argv)],
                stdin=reader,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                # Ctrl-C is for us: we decide what becomes of the lane.
                start_new_session=True,
            )
        except BaseException:
            os.close(self.fd)
            self._errors.close()
            raise
        finally:
            os.close(reader)
        try:
            self._await_ready(timeout)
        except BaseException:
            self.abort()
            raise

    def _await_ready(self, timeout: float) -> None:
        assert self._ssh.stdout is not None
        out = self._ssh.stdout.fileno()
        deadline = time.monotonic() + timeout
        seen = b""
        while READY not in seen:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise overdue(self.kind, timeout)
            data = os.read(out, 4096)
            seen = (seen + data)[-4096:]  # a login shell may greet first
            if not data:
                self._wait(2)
                raise self._reason()

    def finish(self, timeout: float) -> None:
        if self._over:
            raise broken(self.kind, "it was ended before")
        os.close(self.fd)
        self.fd = -1
        try:
            if not self._wait(timeout):
                raise overdue(self.kind, timeout)
            if self._ssh.returncode != 0:
                raise self._reason()
        finally:
            self.abort()

    def _wait(self, timeout: float) -> bool:
        """Popen.wait(timeout) sleeps up to 50 ms too long; a pidfd wakes at once."""
        if self._ssh.poll() is None:
            with contextlib.closing(_Pidfd(self._ssh.pid)) as pidfd:
                select.select([pidfd], [], [], timeout)
        return self._ssh.poll() is not None

    def _reason(self) -> TransportFault:
        self._errors.seek(0)
        words = one_line(self._errors.read(65536).decode(errors="replace"))
        status = self._ssh.returncode
        if status == 127:
            return RemoteMissing(
                doing="opening", target="the openssh lane", why=words or "command not found there"
            )
        return broken(self.kind, words or f"ssh ended with status {status}")

    def abort(self) -> None:
        if self._over:
            return
        self._over = True
        # First the child, then the pipe: the other way round it could see the end of its input
        # and finish as if all had been sent.
        if self._ssh.poll() is None:
            self._ssh.kill()
        self._ssh.wait()
        if self.fd >= 0:
            os.close(self.fd)
        if self._ssh.stdout is not None:
            self._ssh.stdout.close()
        self._errors.close()


class _Pidfd:
    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)
