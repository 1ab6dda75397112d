"""A target for the frozen window: what is dumped stays in memory, and goes to its real place when the tasks run again.

So a container's pause depends on neither a disk's pace nor a reader's. What is larger than the memory allowed for it
goes into a nameless file meanwhile.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ckpt.ops.outgoing import Target
from images.errors import NotFound
from images.moving import Hasher, Mover, os_fault
from images.parts import Part, Sink, check_part
from images.pour import Extent, pour_extents

LIMIT = 256 << 20
"""Bytes in memory."""

Key = tuple[str, str]
"""Kind and name of a part."""


class Aside:
    """DIRECTORY: where the nameless file lies. Use as a context manager. Parts may be written by several threads."""

    def __init__(self, directory: Path, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._parts: dict[Key, list[Extent]] = {}
        self._memory = os.memfd_create("ckpt-aside", os.MFD_CLOEXEC)
        self._held = 0
        self._spilled = 0
        try:
            self._disk = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - ours until close()
        except OSError as error:
            os.close(self._memory)
            raise os_fault(error, doing="keeping images in", target=str(directory)) from error

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_: object) -> None:
        self._disk.close()
        os.close(self._memory)

    def sink(self, kind: str) -> Sink:
        return _AsideSink(self, kind)

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        with self._lock:
            return sum(size for extents in self._parts.values() for _, _, size in extents)

    def extents(self, kind: str, name: str) -> list[Extent]:
        """Where a part lies. Raises NotFound."""
        with self._lock:
            found = self._parts.get((kind, name))
        if found is None:
            raise NotFound(doing="reading", target=f"{kind}/{name}", why="CRIU has not written it")
        return found

    def pour(self, target: Target, wanted: Callable[[str, str], bool]) -> None:
        """Everything for whose kind and name WANTED says so, in the order in which it came."""
        for (kind, name), extents in self._parts.items():
            if wanted(kind, name):
                with Mover(doing="copying", target=name) as mover:
                    pour_extents(target.sink(kind), name, extents, mover)

    # ---- for the parts

    def put(
        self, mover: Mover, source: int, count: int, hashers: Sequence[Hasher], into: list[Extent]
    ) -> None:
        # One at a time: what comes from several pipes lies one after the other.
        with self._lock:
            if self._held + count <= self._limit:
                fd, at = self._memory, self._held
                self._held += count
            else:
                fd, at = self._disk.fileno(), self._spilled
                self._spilled += count
            os.lseek(fd, at, os.SEEK_SET)
            mover.move(source, fd, count, hashers=hashers)
            if into and into[-1][0] == fd and into[-1][1] + into[-1][2] == at:
                into[-1] = (fd, into[-1][1], into[-1][2] + count)
            else:
                into.append((fd, at, count))

    def keep(self, key: Key, extents: list[Extent]) -> None:
        with self._lock:
            self._parts.pop(key, None)
            self._parts[key] = extents


class _AsideSink:
    def __init__(self, owner: Aside, kind: str) -> None:
        self._owner = owner
        self._kind = kind

    def open(self, name: str) -> Part:
        check_part(self._kind, name)
        return _AsidePart(self._owner, (self._kind, name))


class _AsidePart:
    def __init__(self, owner: Aside, key: Key) -> None:
        self._owner = owner
        self._key = key
        self._extents: list[Extent] = []

    def take(self, mover: Mover, source: int, count: int, hashers: Sequence[Hasher] = ()) -> None:
        self._owner.put(mover, source, count, hashers, self._extents)

    def close(self) -> None:
        self._owner.keep(self._key, self._extents)

    def abandon(self) -> None:
        """Its bytes stay where they are, until everything goes."""
