"""Parts of a checkpoint and the places that take them.

Bytes come from CRIU's pipes (criu_stream.Capture) or out of a checkpoint stream
(bundle_stream.receive), and go into a directory, into memory (spool.Spool) or into a checkpoint
stream (bundle_stream.StreamWriter). Each of those takers is a Sink, so that any source can be
connected to any of them, and a Sink may stand before another (rewrite.FilteredSink).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3

from images.errors import BadInput
from images.moving import Hasher, Mover, os_fault

CRIU = "criu"
FILES = "files"
KINDS = (CRIU, FILES)
"""criu: an image file of CRIU. files: anything else that belongs to the checkpoint."""

INVENTORY = "inventory.img"
"""CRIU writes it last and reads it first: a dump with a complete one is complete."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+=-]{0,199}")


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One part as it was announced or found. size: bytes; digest: blake3, 32 bytes, or None."""

    kind: str
    name: str
    size: int
    digest: bytes | None = None

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.name}"


def check_part(kind: str, name: str) -> None:
    """BadInput unless kind and name can be one directory and one file name in it."""
    if kind not in KINDS:
        raise BadInput(doing="checking the part", target=repr(kind)[:80], why="unknown kind")
    if not _NAME.fullmatch(name):
        raise BadInput(
            doing="checking the part",
            target=repr(name)[:80],
            why="not a plain file name of at most 200 characters",
        )


class Part(Protocol):
    """One part being written."""

    def take(self, mover: Mover, source: int, count: int, hashers: Sequence[Hasher] = ()) -> None:
        """Exactly count bytes from the descriptor source, by means of mover."""

    def close(self) -> None:
        """The part is whole."""

    def abandon(self) -> None:
        """The part will never be whole; give back what it holds. May follow any failure."""


class Sink(Protocol):
    """Takes parts. A name that comes twice replaces the first of that name."""

    def open(self, name: str) -> Part: ...


@contextlib.contextmanager
def writing(sink: Sink, name: str) -> Iterator[Part]:
    """The part NAME: whole with the end of the block, abandoned when that fails."""
    part = sink.open(name)
    try:
        yield part
    except BaseException:
        part.abandon()
        raise
    part.close()


class DirectorySink:
    """Writes each part as a file into a directory given as a descriptor, which it doesn't own.

    With digest=True the bytes are hashed on the way (through a buffer), else spliced. written has
    the finished parts by name.
    """

    def __init__(self, directory: int, kind: str, *, digest: bool = False) -> None:
        self._directory = directory
        self._kind = kind
        self._digest = digest
        self.written: dict[str, PartInfo] = {}

    def open(self, name: str) -> FilePart:
        check_part(self._kind, name)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise os_fault(error, doing="creating", target=f"{self._kind}/{name}") from error
        return FilePart(self, fd, self._kind, name, blake3() if self._digest else None)


class FilePart:
    """A part on its way into a file."""

    def __init__(
        self, owner: DirectorySink, fd: int, kind: str, name: str, hasher: blake3 | None
    ) -> None:
        self._owner = owner
        self._fd = fd
        self._kind = kind
        self._name = name
        self._hasher = hasher
        self._size = 0

    def take(self, mover: Mover, source: int, count: int, hashers: Sequence[Hasher] = ()) -> None:
        if self._hasher is not None:
            hashers = (*hashers, self._hasher)
        mover.move(source, self._fd, count, hashers=hashers)
        self._size += count

    def close(self) -> None:
        self._shut()
        digest = self._hasher.digest() if self._hasher is not None else None
        self._owner.written[self._name] = PartInfo(self._kind, self._name, self._size, digest)

    def abandon(self) -> None:
        self._shut()

    def _shut(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as error:
                target = f"{self._kind}/{self._name}"
                raise os_fault(error, doing="writing", target=target) from error
