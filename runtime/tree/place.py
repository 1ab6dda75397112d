"""Make files below a directory, whoever wrote the instructions.

Archives and streams come from strangers. Every path is checked, opened beneath the root without
passing a symbolic link, and nothing that exists is written through: a name is made anew (O_EXCL,
after an unlink) or is opened with O_NOFOLLOW and known to be of the expected type.

Directories get their metadata last (`finish`), deepest first: making a file in one changes its
times, a mode without w would lock us out, and until then nobody else may look inside.
"""

from __future__ import annotations

import errno
import os
import stat

from . import xattrs
from .beneath import check_path, open_beneath
from .ids import IdShift, to_host
from .meta import Meta, by_fd


class Placer:
    """Makes, changes and removes files below `root_fd`, which stays the caller's.

    Every method raises ValueError (with the reason) for a path that it won't touch, and OSError.
    """

    def __init__(self, root_fd: int, *, shift: IdShift = None) -> None:
        self._root = root_fd
        self._shift = shift
        self._parent_path: bytes | None = None
        self._parent_fd = -1
        self._directories: dict[bytes, Meta] = {}

    def close(self) -> None:
        """Forget the cached directory."""
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
        self._parent_fd, self._parent_path = -1, None

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        check_path(path)
        parent, _, name = path.rpartition(b"/")
        if parent != self._parent_path:
            try:
                fd = open_beneath(self._root, parent, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise ValueError(
                        "a component of the path is a symbolic link or no directory"
                    ) from error
                raise
            self.close()
            self._parent_fd, self._parent_path = fd, parent
        return self._parent_fd, name

    def directory(self, path: bytes, meta: Meta) -> bool:
        """Make a directory, or keep the one that is there. True if it was made."""
        made = False
        if path:
            parent, name = self._parent(path)
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
                made = True
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                    raise
        self._directories[path] = meta
        return made

    def has_directory(self, path: bytes) -> bool:
        """Was this directory made or named here?"""
        return path in self._directories

    def new_file(self, path: bytes) -> int:
        """Make an empty regular file where there is none; returns its descriptor (read-write)."""
        parent, name = self._parent(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=parent)

    def existing_file(self, path: bytes) -> int:
        """Open the regular file that is there, read-write."""
        parent, name = self._parent(path)
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(name, flags, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ValueError("it is no regular file")
        return fd

    def finish_file(self, fd: int, meta: Meta) -> None:
        """Give an open regular file or directory its metadata.

        The order is the kernel's: chown clears setuid bits and file capabilities, and setting
        anything but the times may touch them.
        """
        os.fchown(fd, to_host(meta.uid, self._shift), to_host(meta.gid, self._shift))
        xattrs.write(fd, meta.xattrs, shift=self._shift)
        os.fchmod(fd, meta.mode)
        os.utime(fd, ns=(meta.mtime_ns, meta.mtime_ns))

    def symlink(self, path: bytes, target: bytes, meta: Meta) -> None:
        """Make a symbolic link. Its target is text for the container and is not looked at."""
        if not 0 < len(target) <= 4095 or b"\0" in target:
            raise ValueError("its target is empty, too long, or has a NUL byte")
        parent, name = self._parent(path)
        os.symlink(target, name, dir_fd=parent)
        uid, gid = to_host(meta.uid, self._shift), to_host(meta.gid, self._shift)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(meta.mtime_ns,) * 2, dir_fd=parent, follow_symlinks=False)

    def node(self, path: bytes, kind: int, meta: Meta) -> None:
        """Make a FIFO, a socket's name (`kind`: S_IFIFO, S_IFSOCK), or a whiteout (S_IFCHR)."""
        parent, name = self._parent(path)
        os.mknod(name, kind | 0o600, os.makedev(0, 0), dir_fd=parent)
        if meta.xattrs:
            xattrs.write(by_fd(parent, name), meta.xattrs, shift=self._shift)
        uid, gid = to_host(meta.uid, self._shift), to_host(meta.gid, self._shift)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        # The node is ours and new, so following a link here is no question.
        os.chmod(name, meta.mode, dir_fd=parent)
        os.utime(name, ns=(meta.mtime_ns,) * 2, dir_fd=parent, follow_symlinks=False)

    def link(self, path: bytes, existing: bytes) -> None:
        """Make `path` another name of `existing`, which may be anything but a directory."""
        check_path(existing)
        source_parent, _, source_name = existing.rpartition(b"/")
        parent, name = self._parent(path)
        try:
            source = open_beneath(self._root, source_parent, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise ValueError("its target passes through a symbolic link") from error
            raise
        try:
            os.link(source_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def remove(self, path: bytes) -> bool:
        """Remove a name or an empty directory. False if there is none."""
        try:
            parent, name = self._parent(path)
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return False
        except (IsADirectoryError, PermissionError):
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                raise
            os.rmdir(name, dir_fd=parent)
            self._directories.pop(path, None)
            self.close()  # the cached one may be what was removed
        return True

    def finish(self) -> None:
        """Give all directories named so far their metadata, and forget them."""
        for path in sorted(self._directories, reverse=True):
            fd = open_beneath(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.finish_file(fd, self._directories[path])
            finally:
                os.close(fd)
        self._directories.clear()
        self.close()
