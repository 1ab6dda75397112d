"""A container's log, in the line format of the Kubernetes CRI: `TIME STREAM P|F TEXT`, rotated by size.

P marks a piece of a line that goes on, F its end; so any bytes survive and timestamps stay truthful.
"""

from __future__ import annotations

import contextlib
import os
import time


class Log:
    """Appends to PATH; at MAX_BYTES it becomes PATH.1, and so on, FILES in all."""

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self._path = path
        self._max = max_bytes
        self._files = files
        self._fd = -1
        self._size = 0

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: str, data: bytes) -> None:
        """Add DATA of STREAM. A full disk loses log lines, never the container."""
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9))
        head = f"{stamp}.{now % 10**9:09d}Z {stream} ".encode()
        pieces = data.split(b"\n")
        lines = [head + b"F " + piece + b"\n" for piece in pieces[:-1]]
        if pieces[-1]:
            lines.append(head + b"P " + pieces[-1] + b"\n")
        with contextlib.suppress(OSError):
            self._append(lines)

    def _append(self, lines: list[bytes]) -> None:
        if self._fd < 0:
            self._open()
        fitting: list[bytes] = []
        for line in lines:
            if self._size and self._size + len(line) > self._max:
                os.write(self._fd, b"".join(fitting))
                self._rotate()
                fitting = []
            fitting.append(line)
            self._size += len(line)
        os.write(self._fd, b"".join(fitting))

    def _rotate(self) -> None:
        self.close()
        if self._files < 2:
            os.truncate(self._path, 0)
        else:
            for number in range(self._files - 1, 0, -1):
                older = self._path if number == 1 else f"{self._path}.{number - 1}"
                if os.path.exists(older):
                    os.rename(older, f"{self._path}.{number}")
        self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
