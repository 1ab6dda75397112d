"""One digest for a whole tree: the same on any host, file system and moment.

It covers, in the order of the paths: type, mode, owners (as the container has them), mtime, size
and content, a symbolic link's target, extended attributes that travel, and which names are the same
file. It leaves out what a copy can't keep or no program relies on: inode numbers, atime and ctime,
a directory's size, where the holes are, and a whiteout's owner and times.
"""

from __future__ import annotations

import os
import stat
import struct
from concurrent.futures import Future, ThreadPoolExecutor

from blake3 import blake3

from runtime.errors import RuntimeFault, Unsupported, from_os_error

from .beneath import open_beneath, open_regular, shown
from .content import BLOCK, block_hashes, content_digest
from .ids import IdShift
from .index import Entry, Index, hard_links, is_whiteout, scan
from .meta import Meta, read_named, read_open

# From this size on a file is hashed by a thread (blake3 and reads release the GIL); below, handing
# it over costs more than the hash.
_THREADED = 512 * 1024
_THREADS = max(2, min(4, os.cpu_count() or 2))
_AHEAD = 64  # files with a thread at once, for bounded descriptors

_HEAD = struct.Struct("<BHIIqQ")
_DOMAIN = b"ckpt tree 1"


class TreeHasher:
    """Collects the description of a tree; add() must be called in the order of the paths."""

    def __init__(self) -> None:
        self._hash = blake3(_DOMAIN)

    def add(
        self, path: bytes, kind: bytes, meta: Meta, size: int = 0, content: bytes = b""
    ) -> None:
        """One name. `kind` is one of d f l p s w (whiteout) h (another name of a file before).

        `content`: digest of a file, target of a link, first name for h.
        """
        parts = [path, content, b"%d" % len(meta.xattrs)]
        for pair in meta.xattrs:
            parts += pair
        head = _HEAD.pack(kind[0], meta.mode, meta.uid, meta.gid, meta.mtime_ns, size)
        self._hash.update(head + b"".join(len(part).to_bytes(4, "little") + part for part in parts))

    def hexdigest(self) -> str:
        """The digest of what was added so far."""
        return str(self._hash.hexdigest())


def digest_of_bytes(content: bytes) -> bytes:
    """content_digest() of a file that isn't on disk."""
    return blake3(len(content).to_bytes(8, "little") + block_hashes(memoryview(content))).digest()


def tree_digest(directory: str, id_shift: IdShift = None, *, overlay: bool = True) -> str:
    """The digest of the tree at `directory`, in hexadecimal.

    `id_shift`: owners are taken as the container sees them. `overlay`: overlayfs's marks count.
    Raises RuntimeFault, also when the tree changes meanwhile.
    """
    try:
        root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, doing="reading the tree", target=directory) from error
    try:
        index = scan(root_fd, name=directory)
        return _Digest(root_fd, directory, id_shift, overlay).run(index)
    finally:
        os.close(root_fd)


class _Digest:
    def __init__(self, root_fd: int, name: str, shift: IdShift, overlay: bool) -> None:
        self._root = root_fd
        self._name = name
        self._shift = shift
        self._overlay = overlay

    def run(self, index: Index) -> str:
        hasher = TreeHasher()
        first_name = {
            path: names[0] for names in hard_links(index.entries).values() for path in names[1:]
        }
        queue: list[tuple[bytes, bytes, Meta, int, bytes | Future[bytes]]] = []
        threaded = 0

        def drain() -> None:
            for path, kind, meta, size, content in queue:
                done = content if isinstance(content, bytes) else self._wait(path, content)
                hasher.add(path, kind, meta, size, done)
            queue.clear()

        with ThreadPoolExecutor(_THREADS) as pool:
            for path, entry in index.entries.items():
                if path in first_name:
                    queue.append((path, b"h", Meta(0, 0, 0, 0), 0, first_name[path]))
                    continue
                try:
                    item = self._describe(path, entry, pool)
                except OSError as error:
                    raise self._fault(path, error) from error
                except ValueError as error:
                    raise self._fault(path, error) from error
                queue.append(item)
                threaded += isinstance(item[4], Future)
                if threaded >= _AHEAD or len(queue) > 4096:
                    drain()
                    threaded = 0
            drain()
        return hasher.hexdigest()

    def _describe(
        self, path: bytes, entry: Entry, pool: ThreadPoolExecutor
    ) -> tuple[bytes, bytes, Meta, int, bytes | Future[bytes]]:
        kind = stat.S_IFMT(entry.mode)
        if kind == stat.S_IFREG:
            return self._file(path, pool)
        if kind == stat.S_IFDIR:
            fd = open_beneath(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                meta = read_open(fd, os.fstat(fd), overlay=self._overlay, shift=self._shift)
            finally:
                os.close(fd)
            return path, b"d", meta, 0, b""
        if is_whiteout(entry):
            return path, b"w", Meta(0, 0, 0, 0), 0, b""
        letter = {stat.S_IFLNK: b"l", stat.S_IFIFO: b"p", stat.S_IFSOCK: b"s"}.get(kind)
        if letter is None:
            raise ValueError("it is a device node")
        _, meta, target = read_named(self._root, path, overlay=self._overlay, shift=self._shift)
        if kind == stat.S_IFLNK:
            # Some file systems report another mode than 0777 for a link; nothing looks at it.
            meta = meta._replace(mode=0o777)
        return path, letter, meta, 0, target

    def _file(
        self, path: bytes, pool: ThreadPoolExecutor
    ) -> tuple[bytes, bytes, Meta, int, bytes | Future[bytes]]:
        fd = open_regular(self._root, path)
        try:
            st = os.fstat(fd)
            meta = read_open(fd, st, overlay=self._overlay, shift=self._shift)
            size, allocated = st.st_size, st.st_blocks * 512
            content: bytes | Future[bytes]
            if size >= _THREADED:
                content = pool.submit(_digest_and_close, fd, size, allocated)
                fd = -1
            elif size <= BLOCK:
                data = os.pread(fd, size, 0) if size else b""
                if len(data) < size:
                    raise ValueError("the file shrank while it was read")
                content = digest_of_bytes(data)
            else:
                content = content_digest(fd, size, allocated)
        finally:
            if fd >= 0:
                os.close(fd)
        return path, b"f", meta, size, content

    def _wait(self, path: bytes, future: Future[bytes]) -> bytes:
        try:
            return future.result()
        except (OSError, ValueError) as error:
            raise self._fault(path, error) from error

    def _fault(self, path: bytes, error: OSError | ValueError) -> RuntimeFault:
        where = shown(path, self._name)
        if isinstance(error, OSError):
            return from_os_error(error, doing="hashing", target=where)
        return Unsupported(doing="hashing", target=where, why=str(error))


def _digest_and_close(fd: int, size: int, allocated: int) -> bytes:
    try:
        return content_digest(fd, size, allocated)
    finally:
        os.close(fd)
