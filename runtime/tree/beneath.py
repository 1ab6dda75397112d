"""Open files below a directory without ever leaving it.

A container's files are in the container's hands: while we walk its upper directory it may swap a
directory for a symbolic link to the host's /etc. So nothing here opens a path by text from the
host's root. openat2(2) resolves from a directory's descriptor and refuses to pass a symbolic link,
whatever happens at the same time; it needs one call per file, no stack of open directories, and
takes paths of up to 4095 bytes.
"""

from __future__ import annotations

import errno
import os
import stat

from .kernel import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)

MAX_PATH = 4095  # PATH_MAX without its NUL
MAX_NAME = 255

_STRICT = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


def check_path(path: bytes) -> None:
    """Raise ValueError, with the reason, unless `path` is a plain relative path.

    Plain: not absolute, no empty, "." or ".." component, no NUL, lengths within the kernel's.
    The empty path names the directory itself and is not accepted here.
    """
    if not path:
        raise ValueError("the path is empty")
    if len(path) > MAX_PATH:
        raise ValueError(f"the path is longer than {MAX_PATH} bytes")
    if path.startswith(b"/"):
        raise ValueError("the path is absolute")
    if b"\0" in path:
        raise ValueError("the path has a NUL byte")
    for part in path.split(b"/"):
        if part == b"..":
            raise ValueError('the path has a ".." component')
        if part in (b"", b"."):
            raise ValueError('the path has an empty or "." component')
        if len(part) > MAX_NAME:
            raise ValueError(f"a component of the path is longer than {MAX_NAME} bytes")


def shown(path: bytes, directory: str = "") -> str:
    """`path`, below `directory`, for an error text: bytes that aren't printable are escaped."""
    text = os.path.join(os.fsencode(directory), path) if path else os.fsencode(directory)
    readable = text.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in readable)


def open_beneath(
    root_fd: int, path: bytes, flags: int, *, mode: int = 0, cross_mounts: bool = True
) -> int:
    """Open `path` (b"" is the directory itself) below `root_fd`; close-on-exec.

    Raises OSError: ELOOP or ENOTDIR if a symbolic link is in the way, EXDEV if a mount is and
    `cross_mounts` is false.
    """
    resolve = _STRICT if cross_mounts else _STRICT | RESOLVE_NO_XDEV
    return openat2(root_fd, path or b".", flags | os.O_NOFOLLOW, mode, resolve)


def open_regular(root_fd: int, path: bytes, flags: int = os.O_RDONLY) -> int:
    """Open a regular file below `root_fd`; ENOTDIR... as in open_beneath, EINVAL for another type.

    Never blocks on a FIFO that took the file's place meanwhile.
    """
    try:
        fd = open_beneath(root_fd, path, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        # Somebody holds a lease (Samba does): only a blocking open breaks it. O_PATH first, since
        # what is opened for blocking must be known to be a regular file.
        handle = open_beneath(root_fd, path, os.O_PATH)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path)) from error
            return os.open(f"/proc/self/fd/{handle}", flags | os.O_CLOEXEC)
        finally:
            os.close(handle)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
    return fd


def open_in_root(root_fd: int, path: bytes, flags: int) -> int:
    """Open `path` as a process would whose root directory is `root_fd`: symbolic links are
    followed, but absolute ones and ".." end at that root."""
    return openat2(root_fd, path, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
