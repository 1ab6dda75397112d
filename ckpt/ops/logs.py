"""Reading what a container or a job wrote, from the log that its monitor keeps (runtime/monitor/logs.py)."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.container.record import LIVE, Container
from runtime.errors import NotFound

POLL = 0.1
CHUNK = 1 << 20


def log_lines(
    container: Container, *, job: int, follow: bool, tail: int | None, stamps: bool
) -> Iterator[tuple[str, bytes]]:
    """(stream, piece of output) in order; rotated files come first. FOLLOW ends with the container."""
    path = container.paths.jobs / f"{job}.log" if job else container.paths.log
    if job and not path.exists():
        raise NotFound(
            doing="reading",
            target=f"the log of job {job} of {container.record.name}",
            why="there is none",
            hint="only jobs that nobody is attached to are logged",
        )
    reader = _Reader(path)
    try:
        there: Iterable[bytes] = reader.lines()
        for line in there if tail is None else deque(there, maxlen=tail):
            yield _decode(line, stamps)
        while follow:
            # Asked first: what is written before the end is still read.
            over = not container.paths.record.exists() or container.status().state not in LIVE
            for line in reader.lines():
                yield _decode(line, stamps)
            if over:
                return
            time.sleep(POLL)
    finally:
        reader.close()


class _Reader:
    """Goes through a log's files from the oldest on, also while they are rotated under its eyes.

    A rotated file keeps its inode: what follows the one that we have read is the next in age.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def lines(self) -> Iterator[bytes]:
        """The whole lines that are there now and were not read before."""
        while True:
            # Looked for first: this file's last lines are there by then.
            following = self._following()
            while self._file is not None and (data := self._file.read(CHUNK)):
                *whole, self._rest = (self._rest + data).split(b"\n")
                for line in whole:
                    yield line + b"\n"
            if following is None:
                return
            self.close()
            self._file, self._rest = following, b""

    def _following(self) -> BinaryIO | None:
        """The file that comes after the present one; the oldest if ours is gone."""
        mine = None if self._file is None else os.fstat(self._file.fileno()).st_ino
        files = []
        for path in [*_rotated(self._path), self._path]:
            with contextlib.suppress(FileNotFoundError):
                files.append((path.stat().st_ino, path))
        inodes = [inode for inode, _ in files]
        at = inodes.index(mine) + 1 if mine in inodes else 0
        for inode, path in files[at:]:
            with contextlib.suppress(FileNotFoundError):
                file = path.open("rb")
                if os.fstat(file.fileno()).st_ino == inode:
                    return file
                file.close()  # rotated just now
                return self._following()
        return None


def _rotated(path: Path) -> list[Path]:
    older = [
        (int(p.suffix[1:]), p) for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit()
    ]
    return [p for _, p in sorted(older, reverse=True)]


def _decode(line: bytes, stamps: bool) -> tuple[str, bytes]:
    """One line of the CRI format: TIME STREAM P|F TEXT."""
    parts = line.split(b" ", 3)
    if len(parts) < 4:
        return "stdout", line
    stamp, stream, flag, text = parts
    if flag == b"P":
        text = text[:-1]
    return stream.decode(), (stamp + b" " if stamps else b"") + text
