"""What a file has besides its content and name, with the container's ids."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from . import xattrs
from .beneath import open_beneath
from .ids import IdShift, to_container
from .xattrs import Xattrs


class Meta(NamedTuple):
    """Permission bits (setuid, setgid, sticky included), owners, time and attributes."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Xattrs = ()


def by_fd(parent: int, name: bytes) -> bytes:
    """A path for calls without an *at form: the descriptor's magic link leads to the directory,
    and the caller doesn't follow the last component."""
    return b"/proc/self/fd/%d/%s" % (parent, name)


def read_open(fd: int, st: os.stat_result, *, overlay: bool, shift: IdShift = None) -> Meta:
    """The metadata of an open regular file or directory. Raises OSError, ValueError."""
    return _meta(st, xattrs.read(fd, overlay=overlay, shift=shift), shift)


def read_named(
    root_fd: int, path: bytes, *, overlay: bool, shift: IdShift = None
) -> tuple[os.stat_result, Meta, bytes]:
    """The stat, the metadata and (of a symbolic link) the target of what isn't to be opened.

    Raises OSError, ValueError. A whiteout's owner means nothing and is given as 0: overlayfs made
    it with its mounter's credentials.
    """
    parent_path, _, name = path.rpartition(b"/")
    parent = open_beneath(root_fd, parent_path, os.O_PATH | os.O_DIRECTORY)
    try:
        st = os.lstat(name, dir_fd=parent)
        if stat.S_ISLNK(st.st_mode):
            # No attribute that travels can be on a symbolic link (xattr(7)).
            return st, _meta(st, (), shift), os.readlink(name, dir_fd=parent)
        if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:
            return st, Meta(0, 0, 0, 0), b""
        if stat.S_ISDIR(st.st_mode) or stat.S_ISREG(st.st_mode):
            return st, Meta(stat.S_IMODE(st.st_mode), 0, 0, st.st_mtime_ns), b""
        attributes = xattrs.read(by_fd(parent, name), overlay=overlay, shift=shift)
        return st, _meta(st, attributes, shift), b""
    finally:
        os.close(parent)


def _meta(st: os.stat_result, attributes: Xattrs, shift: IdShift) -> Meta:
    return Meta(
        stat.S_IMODE(st.st_mode),
        to_container(st.st_uid, shift),
        to_container(st.st_gid, shift),
        st.st_mtime_ns,
        attributes,
    )
