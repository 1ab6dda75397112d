"""A command on the other host: its stdio as a byte stream, its last words, its exit status."""

from __future__ import annotations

import logging
import threading
import time

import paramiko

from transport.errors import (
    LinkLost,
    RemoteMissing,
    TimedOut,
    TransportFault,
    one_line,
)

log = logging.getLogger(__name__)

_LAST_WORDS = 64 * 1024
# A channel has one timeout for both directions, which two threads would set against each other.
# So it is short and constant, and each call counts for itself how long it waits.
_TICK = 0.2


class RemoteProcess:
    """One SSH channel that runs one command.  Also a ByteStream, for a FrameLink over it.

    Standard error is collected all the time (its end of 64 KiB is kept), as a peer that talks
    there while nobody reads would fill the channel's window and stall.
    """

    def __init__(self, channel: paramiko.Channel, command: str, target: str) -> None:
        self._channel = channel
        self._target = target
        self._program = command.split()[0] if command else ""
        self._words = bytearray()
        channel.settimeout(_TICK)
        channel.exec_command(command)
        self._listener = threading.Thread(
            target=self._listen, name=f"ckpt-stderr-{target}", daemon=True
        )
        self._listener.start()

    def _listen(self) -> None:
        while True:
            try:
                words = self._channel.recv_stderr(32768)
            except TimeoutError:
                continue
            except OSError:
                return
            if not words:
                return
            log.debug("%s says: %r", self._target, words)
            self._words += words
            del self._words[:-_LAST_WORDS]

    @property
    def channel(self) -> paramiko.Channel:
        return self._channel

    def last_words(self) -> str:
        """What it wrote to standard error, at most the last 64 KiB."""
        return self._words.decode(errors="replace")

    # ── ByteStream ──

    def receive(self, size: int, timeout: float | None) -> bytes:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                return self._channel.recv(size)
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimedOut(
                        doing="waiting for", target=self._target, why=f"no answer in {timeout:g} s"
                    ) from None
            except OSError:
                return b""

    def wake(self) -> None:
        self._channel.close()  # paramiko has nothing gentler that ends a recv()

    def send_all(self, data: bytes, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        view = memoryview(data)
        while view:
            try:
                sent = self._channel.send(bytes(view[:32768]))
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise TimedOut(
                        doing="sending to", target=self._target, why=f"stuck for {timeout:g} s"
                    ) from None
                continue
            except (OSError, paramiko.SSHException, EOFError) as problem:
                raise self.ended() from problem
            if sent == 0:
                raise self.ended()
            view = view[sent:]

    def ended(self) -> TransportFault:
        """Why there is no more to read: not there, failed, or the link was lost."""
        self._listener.join(2)
        status = self._status(2)
        words = one_line(self.last_words()[-1000:])
        if status == 127:
            return RemoteMissing(
                doing="starting",
                target=f"{self._program} at {self._target}",
                why=words or "command not found",
                hint="install ckpt there, where a command over SSH finds it",
            )
        if status is None or status < 0:
            why = "the connection was lost"
        else:
            why = f"{self._program} there ended with status {status}"
        return LinkLost(
            doing="talking to",
            target=self._target,
            why=f"{why}: {words}" if words else why,
            retry=status is None,
        )

    def close_stdin(self) -> None:
        """End of input for the command; its output can still be read."""
        try:
            self._channel.shutdown_write()
        except OSError as problem:
            log.debug("closing stdin at %s: %s", self._target, problem)

    # ── the end ──

    def _status(self, timeout: float) -> int | None:
        if not self._channel.status_event.wait(timeout):
            return None
        status = self._channel.exit_status
        return None if status == -1 else status

    def wait(self, timeout: float) -> int:
        """Exit status (255 when a signal killed it).  Raises TimedOut, LinkLost."""
        if not self._channel.status_event.wait(timeout):
            raise TimedOut(
                doing="waiting for",
                target=f"{self._program} at {self._target}",
                why=f"still running after {timeout:g} s",
            )
        status = self._status(0)
        if status is not None:
            return status
        # A signal comes as "exit-signal", which paramiko doesn't tell; a lost link looks alike.
        transport = self._channel.get_transport()
        if transport is not None and transport.is_active():
            return 255
        raise LinkLost(
            doing="waiting for",
            target=f"{self._program} at {self._target}",
            why="the connection was lost",
            retry=True,
        )

    def close(self) -> None:
        """Close the channel: the command's stdio ends.  It isn't killed."""
        self._channel.close()
        self._listener.join(5)

    def __enter__(self) -> RemoteProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
