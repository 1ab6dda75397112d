"""One published checkpoint, open for reading."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from images.digests import file_digest
from images.errors import Corrupt, NotFound
from images.manifest import MAX_SIZE, Manifest, unpack_file
from images.moving import os_fault
from images.parts import CRIU, FILES, PartInfo
from images.sources import DirectorySource

MANIFEST_FILE = "manifest.msgpack"
CRIU_DIR = CRIU
FILES_DIR = FILES


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a checkpoint. part: "criu/NAME", "files/NAME" or the manifest."""

    part: str
    what: str


class Checkpoint:
    """A checkpoint of a Store; holds a shared lock on it until close(). A context manager."""

    def __init__(self, name: str, path: str, fd: int) -> None:
        """fd: the directory, locked; owned from here on if this doesn't raise."""
        self.name = name
        self.path = path
        self.criu_dir = os.path.join(path, CRIU_DIR)
        self.files_dir = os.path.join(path, FILES_DIR)
        self.manifest = _read_manifest(name, fd)
        self._fd = fd
        self._criu_fd = -1

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock. May be called twice."""
        for fd in (self._criu_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._criu_fd = self._fd = -1

    def open_part(self, part: PartInfo) -> int:
        """A descriptor for reading; the caller closes it. Raises NotFound, Corrupt."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(part.label, flags, dir_fd=self._fd)
        except FileNotFoundError as error:
            raise NotFound(doing="opening", target=part.label, why="it is missing") from error
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise Corrupt(
                    doing="opening", target=part.label, why="not a regular file"
                ) from error
            raise os_fault(error, doing="opening", target=part.label) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Corrupt(doing="opening", target=part.label, why="not a regular file")
        return fd

    def source(self) -> DirectorySource:
        """CRIU's images for criu_stream.Serve; good until close()."""
        if self._criu_fd < 0:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._criu_fd = os.open(CRIU_DIR, flags, dir_fd=self._fd)
        return DirectorySource(self._criu_fd)

    def verify(self) -> list[Problem]:
        """Compare everything with the manifest: missing, extra, resized, changed."""
        problems = []
        for part in self.manifest.parts:
            what = self._check(part)
            if what:
                problems.append(Problem(part.label, what))
        listed = {part.label for part in self.manifest.parts}
        problems += [
            Problem(label, "not listed in the manifest")
            for label in self._present()
            if label not in listed
        ]
        return problems

    def _check(self, part: PartInfo) -> str:
        try:
            fd = self.open_part(part)
        except (NotFound, Corrupt) as fault:
            return fault.why
        try:
            size = os.fstat(fd).st_size
            if size != part.size:
                return f"it has {size} bytes instead of {part.size}"
            if part.digest is None:
                return "the manifest has no digest of it"
            if file_digest(fd) != part.digest:
                return "its content has changed"
        except OSError as error:
            return f"unreadable: {error.strerror}"
        finally:
            os.close(fd)
        return ""

    def _present(self) -> list[str]:
        """Labels of everything in the directory but the manifest."""
        found = []
        for name in sorted(os.listdir(self.path)):
            path = os.path.join(self.path, name)
            if name in (CRIU_DIR, FILES_DIR) and not os.path.islink(path) and os.path.isdir(path):
                found += [f"{name}/{inner}" for inner in sorted(os.listdir(path))]
            elif name != MANIFEST_FILE:
                found.append(name)
        return found


def _read_manifest(name: str, directory: int) -> Manifest:
    target = f"the manifest of {name}"
    try:
        fd = os.open(MANIFEST_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise Corrupt(doing="reading", target=target, why=error.strerror or "?") from error
    with open(fd, "rb") as file:
        data = file.read(MAX_SIZE + 4096)
    return unpack_file(data)
