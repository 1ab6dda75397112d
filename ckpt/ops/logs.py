"""Reading what a container or a job wrote, from the log that its monitor keeps (runtime/monitor/logs.py)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from runtime.container.record import Container
from runtime.errors import NotFound

POLL = 0.1


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
    lines = []
    for old in _rotated(path):
        lines += old.read_bytes().splitlines(keepends=True)
    position = 0
    if path.exists():
        data = path.read_bytes()
        position = data.rfind(b"\n") + 1
        lines += data[:position].splitlines(keepends=True)
    if tail is not None:
        lines = lines[len(lines) - tail :] if tail else []
    for line in lines:
        yield _decode(line, stamps)
    if follow:
        yield from _follow(container, path, position, stamps)


def _rotated(path: Path) -> list[Path]:
    older = [
        (int(p.suffix[1:]), p) for p in path.parent.glob(f"{path.name}.*") if p.suffix[1:].isdigit()
    ]
    return [p for _, p in sorted(older, reverse=True)]


def _follow(
    container: Container, path: Path, position: int, stamps: bool
) -> Iterator[tuple[str, bytes]]:
    inode = path.stat().st_ino if path.exists() else 0
    rest = b""
    while True:
        over = (
            container.status().state in ("stopped", "lost") or not container.paths.record.exists()
        )
        if path.exists():
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_ino != inode:
                    inode, position, rest = os.fstat(file.fileno()).st_ino, 0, b""
                file.seek(position)
                data = rest + file.read()
            position += len(data) - len(rest)
            complete, _, rest = data.rpartition(b"\n")
            for line in complete.splitlines(keepends=True) if complete else ():
                yield _decode(line if line.endswith(b"\n") else line + b"\n", stamps)
        if over:
            return
        time.sleep(POLL)


def _decode(line: bytes, stamps: bool) -> tuple[str, bytes]:
    """One line of the CRI format: TIME STREAM P|F TEXT."""
    parts = line.split(b" ", 3)
    if len(parts) < 4:
        return "stdout", line
    stamp, stream, flag, text = parts
    if flag == b"P":
        text = text[:-1]
    return stream.decode(), (stamp + b" " if stamps else b"") + text
