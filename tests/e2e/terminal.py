"""A person at a terminal: a command of ours on a pty whose other end the test holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator

from tests.e2e.box import Box
from tests.patience import patient


class Person:
    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.process = process
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def sees(self, text: str, *, seconds: float = 60.0) -> None:
        """Wait until TEXT is on the screen."""
        deadline = time.monotonic() + patient(seconds)
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} is not in {self.seen!r}"
            if select.select([self._master], [], [], left)[0]:
                try:
                    data = os.read(self._master, 4096)
                except OSError:  # EIO: nobody has the other end open any more
                    data = b""
                assert data, f"{text!r} is not in {self.seen!r} and never will be"
                self.seen += data.decode(errors="replace")

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def ends(self) -> int:
        """The exit status; what is still written meanwhile is read."""
        while self.process.poll() is None:
            if select.select([self._master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self._master, 4096).decode(errors="replace")
        return self.process.returncode


@contextlib.contextmanager
def at_terminal(box: Box, *words: object, rows: int = 24, columns: int = 80) -> Iterator[Person]:
    """Run ckpt WORDS with a terminal of that size as its standard streams."""
    master, slave = pty.openpty()
    try:
        person = Person(master, None)  # type: ignore[arg-type]
        person.resize(rows, columns)
        person.process = box.popen(
            *words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
    finally:
        os.close(slave)
    try:
        yield person
    finally:
        if person.process.poll() is None:
            person.process.kill()
            person.process.wait()
        os.close(master)
