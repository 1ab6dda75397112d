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

from runtime import mountinfo
from runtime.errors import Conflict, SystemFault
from runtime.tree import remove_tree


def publish(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Write PATH whole or not at all, and durably: temporary file, fsync, rename, fsync of the directory.

    Without DURABLE a crash of the machine may bring back the file as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(temporary, "wb", opener=lambda p, f: os.open(p, f, mode)) as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise SystemFault(
            doing="writing", target=str(path), why=error.strerror or str(error)
        ) from None
    if durable:
        sync_directory(path.parent)


def sweep_unpublished(directory: Path) -> list[str]:
    """Remove what processes that were killed in publish() left in DIRECTORY; returns the names."""
    done = []
    for path in sorted(directory.glob(".*.new")):
        writer = path.name.split(".")[-2]
        if writer.isdigit() and not Path("/proc", writer).exists():
            path.unlink(missing_ok=True)
            done.append(path.name)
    return done


def publish_json(path: Path, value: Any, *, durable: bool = True) -> None:
    publish(path, json.dumps(value, indent=1).encode() + b"\n", durable=durable)


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked(
    path: Path, *, what: str, wait: float = 30.0, shared: bool = False, make: bool = True
) -> Iterator[None]:
    """Hold an flock on PATH; it ends with the process, however that ends.

    MAKE: its directory, if it is missing. Raises Conflict when another process holds it for longer than WAIT seconds;
    FileNotFoundError without MAKE.
    """
    if make:
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


def mounts_below(path: Path) -> list[str]:
    """Mount points at or below PATH, as this process sees them."""
    prefix = str(path.resolve())
    points = [mount.point for mount in mountinfo.mounts()]
    return [point for point in points if point == prefix or point.startswith(prefix + "/")]


def discard(path: Path) -> None:
    """Delete a directory tree of ours. Refused while something is mounted below it: a layer or a volume of the
    host could be seen there, and would be deleted with it. What is not there is fine.
    """
    if not path.exists():
        return
    mounted = mounts_below(path)
    if mounted:
        raise SystemFault(
            doing="deleting",
            target=str(path),
            why=f"{mounted[0]} is mounted there",
            hint=f"umount {mounted[0]}",
        )
    remove_tree(str(path))
