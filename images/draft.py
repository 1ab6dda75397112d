"""A checkpoint that is being written; store.Store.begin makes it and gives it its name."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from images.checkpoint import CRIU_DIR, FILES_DIR, MANIFEST_FILE
from images.digests import file_digest
from images.errors import BadInput
from images.manifest import Manifest, pack_file
from images.moving import os_fault
from images.parts import CRIU, FILES, DirectorySink, PartInfo, check_part


class Draft:
    """A checkpoint being written. As a context manager it is discarded unless it was published."""

    def __init__(self, name: str, path: str, fd: int, appear: Callable[[Draft], None]) -> None:
        """fd: the directory, locked, owned from here on; appear: gives it its name."""
        self.name = name
        self.path = path
        self.criu_dir = os.path.join(path, CRIU_DIR)
        self.files_dir = os.path.join(path, FILES_DIR)
        self._appear = appear
        self._fd = fd
        self._kinds: dict[str, int] = {}

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def sink(self, kind: str, *, digest: bool = False) -> DirectorySink:
        """A sink for parts of this kind; digest: hash them on the way."""
        if kind not in self._kinds:
            check_part(kind, "x")
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._kinds[kind] = os.open(kind, flags, dir_fd=self._fd)
        return DirectorySink(self._kinds[kind], kind, digest=digest)

    def publish(self, manifest: Manifest, parts: Iterable[PartInfo] = ()) -> Manifest:
        """Make it appear in the store, on the disk; returns the manifest as published.

        The parts are the files that lie in the draft; sizes are theirs, digests come from parts
        where given (trusted if the size agrees) and are computed otherwise. The draft is
        discarded if this fails. Raises Conflict (the name was taken meanwhile), NoSpace, BadInput.
        """
        known = {(part.kind, part.name): part for part in parts}
        try:
            found = tuple(self._seal(known))
            missing = known.keys() - {(part.kind, part.name) for part in found}
            if missing:
                lost = ", ".join(sorted(f"{kind}/{name}" for kind, name in missing))
                raise BadInput(doing="publishing", target=self.name, why=f"no such parts: {lost}")
            manifest = replace(manifest, name=self.name, parts=found)
            data = pack_file(manifest)
            with open(os.path.join(self.path, MANIFEST_FILE), "xb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.fsync(self._fd)
            self._appear(self)
        except OSError as error:
            self.discard()
            raise os_fault(error, doing="publishing", target=self.name) from error
        except BaseException:
            self.discard()
            raise
        self._close()
        return manifest

    def discard(self) -> None:
        """Remove everything. Does nothing after publish() or a first discard()."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            self._close()

    def _close(self) -> None:
        for fd in self._kinds.values():
            os.close(fd)
        self._kinds.clear()
        if self._fd >= 0:
            os.close(self._fd)  # and with it the lock
            self._fd = -1

    def _seal(self, known: dict[tuple[str, str], PartInfo]) -> Iterator[PartInfo]:
        """Every part's size and digest, once it is on the disk."""
        for kind in (CRIU, FILES):
            directory = os.path.join(self.path, kind)
            for name in sorted(os.listdir(directory)):
                check_part(kind, name)
                fd = _open_regular(os.path.join(directory, name), f"{kind}/{name}")
                try:
                    size = os.fstat(fd).st_size
                    given = known.get((kind, name))
                    if given is not None and given.size != size:
                        raise BadInput(
                            doing="publishing",
                            target=f"{kind}/{name}",
                            why=f"it has {size} bytes, {given.size} were written",
                        )
                    digest = given.digest if given is not None else None
                    # Digest first: the disk can be busy with earlier files meanwhile.
                    digest = digest or file_digest(fd)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                yield PartInfo(kind, name, size, digest)
            sync_directory(directory)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _open_regular(path: str, label: str) -> int:
    # O_NONBLOCK: a FIFO in the place of a file must not make us wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise BadInput(doing="publishing", target=label, why="not a regular file") from error
        raise
    if not os.path.isfile(f"/proc/self/fd/{fd}"):
        os.close(fd)
        raise BadInput(doing="publishing", target=label, why="not a regular file")
    return fd


def sync_directory(path: str) -> None:
    fd = open_directory(path)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
