"""Delete a directory tree, however deep: shutil.rmtree recurses and holds a descriptor per level,
and a container can nest directories deeper than both allow, and deeper than a path can name."""

from __future__ import annotations

import errno
import os

from runtime.errors import Conflict, from_os_error

from .beneath import open_beneath

_LONG = 3000  # what lies deeper is moved to the top first


def remove_tree(path: str) -> None:
    """Delete `path` and all below; nothing if there is nothing. Links aren't followed.

    Raises RuntimeFault: Conflict if something is mounted below (then part of it is gone).
    """
    try:
        root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise from_os_error(error, doing="deleting", target=path) from error
    try:
        emptied = _empty(root_fd)
        for directory in reversed(emptied[1:]):
            parent, _, name = directory.rpartition(b"/")
            fd = open_beneath(root_fd, parent, os.O_PATH | os.O_DIRECTORY)
            try:
                os.rmdir(name, dir_fd=fd)
            finally:
                os.close(fd)
        os.rmdir(path)
    except FileNotFoundError:
        pass  # somebody deletes the same tree
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EBUSY):
            raise Conflict(
                doing="deleting",
                target=path,
                why="something is mounted below it",
                hint="unmount it first",
            ) from error
        raise from_os_error(error, doing="deleting", target=path) from error
    finally:
        os.close(root_fd)


def _empty(root_fd: int) -> list[bytes]:
    """Unlink all that isn't a directory; returns the directories, parents first."""
    found: list[bytes] = []
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        found.append(path)
        fd = _open(root_fd, path)
        try:
            with os.scandir(fd) as listing:
                items = [(os.fsencode(i.name), i.is_dir(follow_symlinks=False)) for i in listing]
            for name, is_directory in items:
                if not is_directory:
                    os.unlink(name, dir_fd=fd)
                elif len(path) + len(name) < _LONG:
                    waiting.append(path + b"/" + name if path else name)
                else:
                    top = b".deep-" + os.urandom(8).hex().encode()
                    os.rename(name, top, src_dir_fd=fd, dst_dir_fd=root_fd)
                    waiting.append(top)
        finally:
            os.close(fd)
    return found


def _open(root_fd: int, path: bytes) -> int:
    if os.geteuid() != 0:  # root needs no permission
        handle = open_beneath(root_fd, path, os.O_PATH | os.O_DIRECTORY, cross_mounts=not path)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)
        finally:
            os.close(handle)
    return open_beneath(root_fd, path, os.O_RDONLY | os.O_DIRECTORY, cross_mounts=not path)
