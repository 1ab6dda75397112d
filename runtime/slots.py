"""A small record on disk that is changed in place: whole whatever happens, and durable after one flush.

Publishing a new file (runtime/files.py) takes two flushes, of the file and of its directory, and the file system's
journal with each: 3 to 5 ms, where a decision is waited for. Here the file keeps its name, size and blocks. It has two
slots of a page; a write goes to the one that is not in force, with a higher number, and counts once its digest is
right. So a write that is cut off leaves the record as it was.
"""

from __future__ import annotations

import os
from pathlib import Path

from blake3 import blake3

from runtime.errors import BadInput, SystemFault, from_os_error
from runtime.files import publish

SLOT = 4096
_HEAD = 16 + 1 + 32 + 1
"""Number and digest, in hex, a space after each; then the record, a newline, and spaces to the slot's end."""


def create(path: Path, data: bytes) -> None:
    """A new file with the record DATA, durable. Raises BadInput if it is too large, SystemFault."""
    publish(path, _slot(1, data) + _slot(0, b""))


def write(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Change the record of a file that create() made. Raises NotFound, SystemFault; then the record is as it was."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, doing="writing", target=str(path)) from error
    try:
        content = os.pread(fd, 2 * SLOT, 0)
        number, place, _ = _in_force(content, path)
        at = (1 - place) * SLOT
        try:
            os.pwrite(fd, _slot(number + 1, data), at)
            if durable:
                os.fdatasync(fd)
        except OSError:
            # Not on disk, but in memory, where it would be read: take it back.
            os.pwrite(fd, content[at : at + SLOT], at)
            raise
    except OSError as error:
        raise SystemFault(
            doing="writing", target=str(path), why=error.strerror or str(error)
        ) from None
    finally:
        os.close(fd)


def read(path: Path) -> bytes:
    """The record. Raises FileNotFoundError; SystemFault if there is none that is whole."""
    return _in_force(path.read_bytes(), path)[2]


def _slot(number: int, data: bytes) -> bytes:
    text = b"%016x %s %s\n" % (number, _digest(number, data), data)
    if len(text) > SLOT or b"\n" in data:
        raise BadInput(
            doing="writing", target="a record", why=f"{len(data)} bytes do not fit into a line"
        )
    return text.ljust(SLOT)


def _digest(number: int, data: bytes) -> bytes:
    return blake3(b"%016x" % number + data).hexdigest()[:32].encode()


def _in_force(content: bytes, path: Path) -> tuple[int, int, bytes]:
    """Number, slot and record."""
    found = []
    for place in (0, 1):
        line, newline, _ = content[place * SLOT : (place + 1) * SLOT].partition(b"\n")
        try:
            number = int(line[:16], 16)
        except ValueError:
            continue
        data = line[_HEAD:]
        if newline and line == _slot(number, data).partition(b"\n")[0]:
            found.append((number, place, data))
    if not found:
        raise SystemFault(doing="reading", target=str(path), why="no record in it is whole")
    return max(found)
