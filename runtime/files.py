"""Publishing files atomically, and locks that end with their holder."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.errors import Conflict, SystemFault


def publish(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write PATH whole or not at all, and durably: temporary file, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(temporary, "wb", opener=lambda p, f: os.open(p, f, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SystemFault(doing="writing", target=str(path), why=error.strerror or str(error)) from None
    sync_directory(path.parent)


def publish_json(path: Path, value: Any) -> None:
    publish(path, json.dumps(value, indent=1).encode() + b"\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(path: Path, *, what: str, wait: float = 30.0, shared: bool = False) -> Iterator[None]:
    """Hold an flock on PATH; it ends with the process, however that ends.

    Raises Conflict when another process holds it for longer than WAIT seconds.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(fd, operation)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise Conflict(
                        doing="locking",
                        target=what,
                        why="another ckpt command is working on it",
                        hint="wait for it to end",
                        retry=True,
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)
