"""Apply a tree stream to a directory. The stream may come from a hostile host.

Nothing outside the directory is ever touched (see place.py), memory is bounded, and what isn't
understood is refused. A stream that fails midway leaves the directory half changed: the caller
throws it away, or lets the sender begin again.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from runtime.errors import BadInput, from_os_error
from runtime.holes import punch_hole

from . import stream
from .beneath import shown
from .ids import IdShift
from .meta import Meta
from .place import Placer

_SPECIAL = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)
_ZEROS = bytes(64 * 1024)


@dataclass(frozen=True, slots=True)
class Received:
    """What a stream did: records that name a file, bytes of stream, its digest as the sender has
    it, bytes of content, names removed."""

    entries: int
    bytes: int
    digest: str
    data_bytes: int
    removed: int


def receive(fd: int, directory: str, *, id_shift: IdShift = None) -> Received:
    """Read one stream of send() from `fd`, to its last byte and no further, into `directory`.

    `id_shift`: (first host id, count) to give the owners on disk. Raises RuntimeFault; BadInput
    for a stream that is cut off, damaged or asks for something it mustn't.
    """
    try:
        root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, doing="receiving the tree", target=directory) from error
    receiver = _Receiver(root_fd, id_shift)
    try:
        return receiver.run(stream.Reader(fd))
    except ValueError as error:
        raise BadInput(
            doing="receiving", target=receiver.where(directory), why=str(error)
        ) from error
    except OSError as error:
        where = receiver.where(directory)
        raise from_os_error(error, doing="receiving", target=where) from error
    finally:
        receiver.close()
        os.close(root_fd)


class _Receiver:
    def __init__(self, root_fd: int, shift: IdShift) -> None:
        self._placer = Placer(root_fd, shift=shift)
        self._path: bytes | None = None  # what is being worked at, for error texts
        self._file = -1
        self._size = 0
        self._meta: Meta | None = None
        self._data_bytes = 0
        self._removed = 0

    def where(self, directory: str) -> str:
        """The file that is being worked at."""
        return shown(self._path or b"", directory)

    def close(self) -> None:
        """Close what a failure left open."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._placer.close()

    def run(self, reader: stream.Reader) -> Received:
        for kind, payload in reader.records():
            if kind == stream.DATA:
                self._data(*stream.parse_data(payload))
                continue
            if kind == stream.ZERO:
                self._zero(*stream.parse_zero(payload))
                continue
            self._finish_file()
            self._path = None
            if kind == stream.ENTRY:
                self._entry(payload)
            elif kind == stream.LINK:
                self._path, first = stream.parse_link(payload)
                self._placer.remove(self._path)
                self._placer.link(self._path, first)
            elif kind == stream.REMOVE:
                self._path = stream.parse_remove(payload)
                self._removed += self._placer.remove(self._path)
            else:
                raise ValueError(f"a record of unknown kind {kind}")
        self._finish_file()
        self._placer.finish()
        return Received(
            reader.entries, reader.bytes, reader.digest, self._data_bytes, self._removed
        )

    def _entry(self, payload: memoryview) -> None:
        path, kind, meta, size, flags, target = stream.parse_entry(payload)
        self._path = path
        if kind == stat.S_IFDIR:
            self._placer.directory(path, meta)
            return
        if not path:
            raise ValueError("the tree itself must be a directory")
        if kind == stat.S_IFREG:
            self._begin_file(path, meta, size, flags)
            return
        if not flags & stream.FRESH:
            raise ValueError("only files and directories can be changed in place")
        self._placer.remove(path)
        if kind == stat.S_IFLNK:
            self._placer.symlink(path, target, meta)
        elif kind in _SPECIAL:
            # A character device is always a whiteout, 0:0: a stream can't name another.
            self._placer.node(path, kind, meta)
        else:
            raise ValueError("device nodes don't travel")

    def _begin_file(self, path: bytes, meta: Meta, size: int, flags: int) -> None:
        if flags & stream.FRESH:
            self._placer.remove(path)
            fd = self._placer.new_file(path)
        else:
            fd = self._placer.existing_file(path)
        self._file, self._size, self._meta = fd, size, meta
        if not flags & (stream.FRESH | stream.PATCH):
            os.ftruncate(fd, 0)
        if size or flags & stream.PATCH:
            os.ftruncate(fd, size)

    def _finish_file(self) -> None:
        if self._file < 0:
            return
        assert self._meta is not None
        self._placer.finish_file(self._file, self._meta)
        os.close(self._file)
        self._file = -1

    def _data(self, offset: int, content: memoryview) -> None:
        self._inside(offset, len(content))
        self._data_bytes += len(content)
        while content:
            done = os.pwrite(self._file, content, offset)
            content = content[done:]
            offset += done

    def _zero(self, offset: int, length: int) -> None:
        self._inside(offset, length)
        if length == 0:
            return
        try:
            punch_hole(self._file, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            while length > 0:  # a file system without holes
                done = os.pwrite(self._file, _ZEROS[: min(length, len(_ZEROS))], offset)
                offset, length = offset + done, length - done

    def _inside(self, offset: int, length: int) -> None:
        if self._file < 0:
            raise ValueError("content without a file")
        if offset + length > self._size:
            raise ValueError("content behind the file's end")
