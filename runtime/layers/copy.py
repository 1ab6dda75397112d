"""Copy a directory into a layer's draft.

Content is shared (FICLONE) where the file system can, else moved inside the kernel
(copy_file_range(2)); holes stay holes. What the copy holds is what gets hashed, so a source that
changes meanwhile can't make a layer that isn't what its digest says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Literal

from runtime.errors import RuntimeFault, Unsupported, from_os_error
from runtime.tree.beneath import open_beneath, open_regular, shown
from runtime.tree.content import data_ranges, read_at, scratch
from runtime.tree.index import Entry, Index, hard_links
from runtime.tree.kernel import FICLONE
from runtime.tree.meta import read_named, read_open
from runtime.tree.place import Placer

from .limits import Budget

Devices = Literal["refuse", "skip"]

# The file systems can't share or copy between them: then bytes go through us.
_NOT_HERE = frozenset(
    {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}
)
_KERNEL_STEP = 64 << 20  # so that the budget is asked now and then


def copy_tree(
    source_fd: int,
    name: str,
    index: Index,
    target_fd: int,
    budget: Budget,
    *,
    devices: Devices = "refuse",
) -> None:
    """Copy what `index` lists of the open directory `source_fd` to the empty one `target_fd`.

    Sockets are left out (nobody listens on the copy). A directory that wasn't entered (a mount
    point, a pruned one) becomes an empty one with mtime 0, since its real time says when this host
    mounted it. Raises RuntimeFault naming the file.
    """
    placer = Placer(target_fd)
    first_name = {
        path: names[0] for names in hard_links(index.entries).values() for path in names[1:]
    }
    copier = _Copier(source_fd, placer, budget)
    try:
        for path, entry in index.entries.items():
            try:
                _one(copier, index, path, entry, first_name.get(path), devices)
            except OSError as error:
                where = shown(path, name)
                raise from_os_error(error, doing="importing", target=where) from error
            except ValueError as error:
                raise _refused(shown(path, name), str(error)) from error
        placer.finish()
    finally:
        placer.close()


def _refused(where: str, why: str) -> RuntimeFault:
    hint = "leave it out, or let device nodes be skipped" if "device node" in why else ""
    return Unsupported(doing="importing", target=where, why=why, hint=hint)


def _one(
    copier: _Copier, index: Index, path: bytes, entry: Entry, first: bytes | None, devices: Devices
) -> None:
    kind = stat.S_IFMT(entry.mode)
    if kind == stat.S_IFSOCK:
        return
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        if devices == "skip":
            return
        raise ValueError("device nodes don't belong into a layer")
    if first is not None:
        copier.budget.entry(0)
        copier.placer.link(path, first)
    elif kind == stat.S_IFDIR:
        copier.directory(path, closed=path in index.closed)
    elif kind == stat.S_IFREG:
        copier.file(path)
    else:
        copier.special(path, kind)


class _Copier:
    def __init__(self, source_fd: int, placer: Placer, budget: Budget) -> None:
        self._source = source_fd
        self.placer = placer
        self.budget = budget
        self._clone = True
        self._kernel_copy = True

    def directory(self, path: bytes, *, closed: bool) -> None:
        self.budget.entry(0)
        fd = open_beneath(self._source, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            meta = read_open(fd, os.fstat(fd), overlay=False)
        finally:
            os.close(fd)
        self.placer.directory(path, meta._replace(mtime_ns=0) if closed else meta)

    def special(self, path: bytes, kind: int) -> None:
        self.budget.entry(0)
        st, meta, target = read_named(self._source, path, overlay=False)
        if stat.S_IFMT(st.st_mode) != kind:
            raise ValueError("it changed while it was copied")
        if kind == stat.S_IFLNK:
            self.placer.symlink(path, target, meta)
        else:
            self.placer.node(path, kind, meta)

    def file(self, path: bytes) -> None:
        source = open_regular(self._source, path)
        try:
            st = os.fstat(source)
            self.budget.entry(st.st_size)
            meta = read_open(source, st, overlay=False)
            target = self.placer.new_file(path)
            try:
                self._content(source, target, st)
                self.placer.finish_file(target, meta)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _content(self, source: int, target: int, st: os.stat_result) -> None:
        if st.st_size == 0:
            return
        if self._clone:
            try:
                fcntl.ioctl(target, FICLONE, source)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._clone = False
            else:
                # A clone takes no space and ends where the source ended at that moment.
                return
        for start, end in data_ranges(source, st.st_size, st.st_blocks * 512):
            self._range(source, target, start, end)
        os.ftruncate(target, st.st_size)

    def _range(self, source: int, target: int, start: int, end: int) -> None:
        while start < end and self._kernel_copy:
            step = min(end - start, _KERNEL_STEP)
            try:
                done = os.copy_file_range(source, target, step, start, start)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._kernel_copy = False
                break
            if done == 0:  # the end, or a file of /proc or /sys, which this call calls empty
                break
            self.budget.written(done)
            start += done
        while start < end:
            view = scratch()[: min(end - start, len(scratch()))]
            got = read_at(source, view, start)
            if got == 0:
                raise ValueError("it shrank while it was copied")
            self.budget.written(got)
            os.pwrite(target, view[:got], start)
            start += got
