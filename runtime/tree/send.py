"""Write the changes of a tree to a descriptor: what send() reads is alive and may be hostile.

The container goes on while earlier rounds run. A file that vanishes, or becomes something else,
between the walk and the read is left out and reported (`missed`); one that changes while it is read
is sent as it was read (`unstable`). Both show up in the next round's diff. With `frozen` the tasks
stand still, and any of it is an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

from runtime.errors import Conflict, RuntimeFault, Unsupported, from_os_error

from .beneath import open_beneath, open_regular, shown
from .content import BLOCK, HASH, block_hashes, data_ranges, read_at, scratch, windows, zero_hashes
from .ids import IdShift
from .index import Changes, Entry, is_whiteout
from .kernel import start_writeback
from .meta import Meta, read_named, read_open
from .stream import FRESH, PATCH, Writer

TRACKED = 1024 * 1024  # larger files' blocks are remembered: 256 bytes per MiB

# What the other end has of each tracked file: the digests of its blocks, by path.
BlockMap = dict[bytes, bytes]

_REPLACED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO})


_Path = bytes


@dataclass(frozen=True, slots=True)
class Sent:
    """What went into a stream: records that name a file, bytes of stream and of content."""

    entries: int
    bytes: int
    digest: str
    data_bytes: int
    missed: tuple[_Path, ...]
    unstable: tuple[_Path, ...]


def send(
    directory: str,
    changes: Changes,
    fd: int,
    *,
    id_shift: IdShift = None,
    blocks: BlockMap | None = None,
    frozen: bool = False,
) -> Sent:
    """Write `changes` of the tree at `directory` to `fd` as a stream for receive().

    `id_shift`: (first host id, count) of the container: owners travel unshifted. `blocks`: what
    the other end has, kept up to date here; after a failure it is worthless. Raises RuntimeFault
    (Unsupported for a device node or a foreign owner, Conflict if `frozen` didn't hold).
    """
    try:
        root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sender = _Sender(root_fd, Writer(fd), id_shift, blocks, frozen)
            return sender.run(changes)
        finally:
            os.close(root_fd)
    except _Failed as failure:
        where = shown(failure.path, directory)
        cause = failure.__cause__
        if isinstance(cause, OSError):
            raise from_os_error(cause, doing="sending", target=where) from cause
        raise failure.kind(doing="sending", target=where, why=failure.why) from cause
    except OSError as error:
        raise from_os_error(error, doing="sending the tree", target=directory) from error


class _Failed(Exception):
    def __init__(self, path: bytes, why: str, kind: type[RuntimeFault] = Unsupported) -> None:
        super().__init__(why)
        self.path, self.why, self.kind = path, why, kind


class _Sender:
    def __init__(
        self,
        root_fd: int,
        out: Writer,
        shift: IdShift,
        blocks: BlockMap | None,
        frozen: bool,
    ) -> None:
        self._root = root_fd
        self._out = out
        self._shift = shift
        self._blocks = blocks
        self._frozen = frozen
        self._missed: list[bytes] = []
        self._missed_directories: set[bytes] = set()
        self._unstable: list[bytes] = []
        self._data_bytes = 0
        self._writeback = not frozen

    def run(self, changes: Changes) -> Sent:
        for path in changes.removed:
            if path:
                self._out.remove(path)
                self._forget(path)
        for path, anew in changes.changed:
            expected = changes.entries[path]
            if self._missed_directories and self._parent_missed(path):
                self._miss(path, expected.mode)
                continue
            with self._naming(path):
                try:
                    self._entry(path, expected, anew)
                except _Gone:
                    self._miss(path, expected.mode)
        gone = frozenset(self._missed)
        for path, first in changes.linked:
            if first in gone or (self._missed_directories and self._parent_missed(path)):
                self._missed.append(path)
            else:
                self._out.link(path, first)
                self._forget(path)
        digest = self._out.end()
        out = self._out
        return Sent(
            out.entries,
            out.bytes,
            digest,
            self._data_bytes,
            tuple(self._missed),
            tuple(self._unstable),
        )

    @contextlib.contextmanager
    def _naming(self, path: bytes) -> Iterator[None]:
        """Errors about a file say which; errors of the descriptor we write to don't get here."""
        try:
            yield
        except _Wire as error:
            raise error.cause from None
        except OSError as error:
            raise _Failed(path, "") from error
        except ValueError as error:
            raise _Failed(path, str(error)) from error

    def _forget(self, path: bytes) -> None:
        if self._blocks is not None:
            self._blocks.pop(path, None)

    def _parent_missed(self, path: bytes) -> bool:
        return path.rpartition(b"/")[0] in self._missed_directories

    def _miss(self, path: bytes, mode: int) -> None:
        if self._frozen:
            raise _Failed(path, "it changed although the container is frozen", Conflict)
        self._missed.append(path)
        self._forget(path)
        if stat.S_ISDIR(mode):
            self._missed_directories.add(path)

    def _entry(self, path: bytes, expected: Entry, anew: bool) -> None:
        kind = stat.S_IFMT(expected.mode)
        flags = FRESH if anew else 0
        if kind == stat.S_IFREG:
            with self._opened(path, expected) as (fd, st):
                self._file(path, fd, st, flags)
            return
        self._forget(path)
        if kind == stat.S_IFDIR:
            with self._opened(path, expected) as (fd, st):
                meta = read_open(fd, st, overlay=True, shift=self._shift)
                self._put(path, kind, meta, 0, flags, b"")
            return
        if kind in (stat.S_IFCHR, stat.S_IFBLK) and not is_whiteout(expected):
            raise ValueError("device nodes don't travel")
        try:
            st, meta, target = read_named(self._root, path, overlay=True, shift=self._shift)
        except OSError as error:
            if error.errno in _REPLACED:
                raise _Gone from error
            raise
        if _another(st, expected):
            raise _Gone
        self._put(path, kind, meta, 0, flags, target)

    @contextlib.contextmanager
    def _opened(self, path: bytes, expected: Entry) -> Iterator[tuple[int, os.stat_result]]:
        try:
            if stat.S_ISDIR(expected.mode):
                fd = open_beneath(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
            else:
                fd = open_regular(self._root, path)
        except OSError as error:
            if error.errno in _REPLACED:
                raise _Gone from error
            raise
        try:
            if self._writeback and stat.S_ISREG(expected.mode):
                self._start_writeback(fd)
            st = os.fstat(fd)
            if _another(st, expected):
                raise _Gone
            yield fd, st
        finally:
            os.close(fd)

    def _file(self, path: bytes, fd: int, st: os.stat_result, flags: int) -> None:
        meta = read_open(fd, st, overlay=True, shift=self._shift)
        size = st.st_size
        # Not of a file with several names: the map goes by name, the content doesn't.
        tracked = self._blocks is not None and size > TRACKED and st.st_nlink == 1
        known = None
        if self._blocks is not None:
            known = self._blocks.pop(path, None)
        if not tracked or flags & FRESH:
            known = None
        if known is not None:
            flags |= PATCH
        self._put(path, stat.S_IFREG, meta, size, flags, b"")
        ranges = data_ranges(fd, size, st.st_blocks * 512)
        if tracked:
            assert self._blocks is not None
            self._blocks[path] = self._tracked(fd, list(ranges), size, known)
        else:
            for start, end in ranges:
                while start < end:
                    upto = min(start + len(scratch()), end)
                    view = scratch()[: upto - start]
                    got = read_at(fd, view, start)
                    self._data(start, view[:got])
                    start = upto if got == len(view) else end
        now = os.fstat(fd)
        if (now.st_ctime_ns, now.st_size) != (st.st_ctime_ns, size):
            if self._frozen:
                raise _Failed(path, "it changed although the container is frozen", Conflict)
            self._unstable.append(path)

    def _tracked(
        self, fd: int, ranges: list[tuple[int, int]], size: int, known: bytes | None
    ) -> bytes:
        """Send a large file's content, only the blocks that `known` hasn't; returns its hashes."""
        hashes = bytearray()
        for start, end in windows(iter(ranges), size):
            if start < 0:
                self._hole(hashes, known, -start)
                continue
            view = scratch()[: end - start]
            got = read_at(fd, view, start)
            if got < len(view):
                # It shrank: the next round sends the new size. Until then the range is zeros.
                view[got:] = bytes(len(view) - got)
            fresh = block_hashes(view)
            self._window(view, start, ranges, fresh, known, len(hashes))
            hashes += fresh
        return bytes(hashes)

    def _hole(self, hashes: bytearray, known: bytes | None, blocks: int) -> None:
        fresh = zero_hashes(blocks)
        if known is not None:
            was = known[len(hashes) : len(hashes) + len(fresh)]
            if was != fresh[: len(was)]:
                self._zero(len(hashes) // HASH * BLOCK, blocks * BLOCK)
        hashes += fresh

    def _window(
        self,
        view: memoryview,
        start: int,
        ranges: list[tuple[int, int]],
        fresh: bytes,
        known: bytes | None,
        at: int,
    ) -> None:
        """Send a window's runs of changed blocks; in them, holes as holes."""
        run: list[int] = []  # first and last byte
        for number in range(len(fresh) // HASH):
            here = slice(number * HASH, number * HASH + HASH)
            same = known is not None and known[at + here.start : at + here.stop] == fresh[here]
            first = number * BLOCK
            last = min(first + BLOCK, len(view))
            if not same:
                run = [run[0] if run else first, last]
            if run and (same or last == len(view)):
                self._run(view, start, run[0], run[1], ranges, known is not None)
                run = []

    def _run(
        self,
        view: memoryview,
        base: int,
        first: int,
        last: int,
        ranges: list[tuple[int, int]],
        patch: bool,
    ) -> None:
        position = base + first
        end = base + last
        for number in range(bisect_right(ranges, position, key=itemgetter(1)), len(ranges)):
            low, high = max(ranges[number][0], position), min(ranges[number][1], end)
            if low >= end:
                break
            if patch and low > position:
                self._zero(position, low - position)
            self._data(low, view[low - base : high - base])
            position = high
        if patch and position < end:
            self._zero(position, end - position)

    def _start_writeback(self, fd: int) -> None:
        # So that a later write through a shared mapping stamps the file again: see index.py.
        try:
            start_writeback(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ESPIPE, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            self._writeback = False

    def _put(
        self, path: bytes, kind: int, meta: Meta, size: int, flags: int, target: bytes
    ) -> None:
        with _wire():
            self._out.entry(path, kind, meta, size, flags, target)

    def _data(self, offset: int, view: memoryview) -> None:
        if view:
            self._data_bytes += len(view)
            with _wire():
                self._out.data(offset, view)

    def _zero(self, offset: int, length: int) -> None:
        with _wire():
            self._out.zero(offset, length)


def _another(st: os.stat_result, expected: Entry) -> bool:
    """Is it another file than the one that the index means? Hard links rest on the identity."""
    return (st.st_ino, st.st_dev, stat.S_IFMT(st.st_mode)) != (
        expected.ino,
        expected.dev,
        stat.S_IFMT(expected.mode),
    )


class _Gone(Exception):
    """The file isn't what the walk saw any more."""


class _Wire(Exception):
    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextlib.contextmanager
def _wire() -> Iterator[None]:
    """Tell an error of the descriptor written to from one of the file read."""
    try:
        yield
    except OSError as error:
        raise _Wire(error) from error
