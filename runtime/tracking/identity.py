"""Which process is meant: a process id may be somebody else's by the next round."""

from __future__ import annotations

import os
import signal

from runtime.errors import NotFound


class Identity:
    """Holds a process's pidfd. `close` it."""

    def __init__(self, pid: int) -> None:
        """Raises NotFound."""
        self.pid = pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise ended(pid) from error

    def check(self) -> None:
        """Raise NotFound unless PID is still the same process: what was opened by its number before was its own."""
        try:
            signal.pidfd_send_signal(self.pidfd, 0)
        except ProcessLookupError:
            raise ended(self.pid) from None

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def ended(pid: int) -> NotFound:
    return NotFound(doing="tracking", target=f"process {pid}", why="it has ended")
