"""One process whose streams and end the monitor keeps: the container's first process (job 0) or a job."""

from __future__ import annotations

import os

from runtime.monitor.clients import Client
from runtime.monitor.logs import Log
from runtime.monitor.streams import Streams

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from typing import Any

READ = 16 * 1024
"""Bytes at a time: what is made of them (lines of the log, packets) exists several times over for a moment."""
KINDS = {"stdout": b"o", "stderr": b"e"}


class Process:
    """Streams, log and followers of one process; `status` is None until it ended."""

    def __init__(
        self, streams: Streams, log: Log | None, *, terminal: bool, info: dict[str, Any]
    ) -> None:
        self.streams = streams
        self.log = log
        self.terminal = terminal
        self.info = info
        self.status: dict[str, Any] | None = None
        self.ended: dict[str, Any] | None = None
        """It is gone, but its terminal's keeper has not passed on everything yet."""
        self.clients: list[Client] = []
        self._input: list[bytes] = []
        self._input_ended = False

    @property
    def held_up(self) -> bool:
        """A follower is slower than the process: its output waits in the pipe meanwhile."""
        return any(client.full for client in self.clients)

    @property
    def wants_input(self) -> bool:
        return bool(self._input) or self._input_ended

    def read(self, role: str) -> bool:
        """Pass on what is in the pipe; False at its end."""
        try:
            data = os.read(self.streams.ours[role], READ)
        except BlockingIOError:
            return True
        if not data:
            return False
        if self.log:
            self.log.write(role, data)
        for client in self.clients:
            client.output(KINDS[role], data)
        return True

    def drain(self) -> None:
        """After the process is gone: what it wrote last is still in the pipes."""
        for role in ("stdout", "stderr"):
            while role in self.streams.ours:
                try:
                    data = os.read(self.streams.ours[role], READ)
                except BlockingIOError:
                    break  # someone who outlives the process holds the other end
                if not data:
                    break
                if self.log:
                    self.log.write(role, data)
                for client in self.clients:
                    client.output(KINDS[role], data)

    @property
    def unsent(self) -> bytes:
        """Input that does not fit into the pipe yet."""
        return b"".join(self._input)

    def feed(self, data: bytes) -> None:
        """Input from a follower; none means its end."""
        if "stdin" not in self.streams.ours:
            return
        if data:
            self._input.append(data)
        else:
            self._input_ended = True
        self.flush_input()

    def flush_input(self) -> None:
        fd = self.streams.ours.get("stdin")
        if fd is None:
            return
        try:
            while self._input:
                written = os.write(fd, self._input[0])
                rest = self._input.pop(0)[written:]
                if rest:
                    self._input.insert(0, rest)
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._input = []
            self._input_ended = True
        if self._input_ended:
            self._input_ended = False
            self.streams.close("stdin")

    def end(self, status: dict[str, Any]) -> None:
        self.status = status
        self.drain()
        for client in self.clients:
            client.end(status)
        self.streams.close_all()
        if self.log:
            self.log.close()
