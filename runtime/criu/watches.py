"""Where the inotify watches of a container are: `--irmap-scan-path` for CRIU.

The kernel tells a watch's inode, not its path (/proc/PID/fdinfo). CRIU opens it by its file handle; overlayfs, unless
it is mounted with nfs_export, gives handles that cannot be opened, and CRIU then searches a few directories that
daemons use (criu/irmap.c). So we search the container's root for those inodes, before anything is frozen, and name the
paths.
A watch that is set between this and the freeze makes the dump fail, and the container runs on.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable

_WATCH = re.compile(rb"^inotify wd:[0-9a-f]+ ino:([0-9a-f]+) sdev:([0-9a-f]+)", re.MULTILINE)


def watched_paths(init_pid: int, pids: Iterable[int]) -> list[str]:
    """Paths in the root of INIT_PID of what PIDS watch there; watches in other file systems need no help."""
    root = f"/proc/{init_pid}/root"
    device = os.stat(root).st_dev
    wanted = {inode for pid in pids for inode, where in _watches(pid) if where == _kernel(device)}
    found: list[str] = []
    if wanted:
        _search(root + "/", "/", device, wanted, found)
    return found


def _watches(pid: int) -> Iterable[tuple[int, int]]:
    """(inode, device as the kernel writes it) of each watch."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") != "anon_inode:inotify":
                continue
            with open(f"/proc/{pid}/fdinfo/{name}", "rb") as file:
                text = file.read()
        except OSError:
            continue  # closed, or the process ended
        for inode, device in _WATCH.findall(text):
            yield int(inode, 16), int(device, 16)


def _kernel(device: int) -> int:
    """A dev_t in the kernel's own notation: 12 bits major, 20 bits minor."""
    return os.major(device) << 20 | os.minor(device)


def _search(outside: str, inside: str, device: int, wanted: set[int], found: list[str]) -> None:
    """Note the paths below of the WANTED inodes, which are taken out of it; stays in one file system."""
    waiting = [(outside, inside)]
    if os.stat(outside).st_ino in wanted:
        wanted.discard(os.stat(outside).st_ino)
        found.append(inside)
    while waiting and wanted:
        outside, inside = waiting.pop()
        try:
            entries = list(os.scandir(outside))
        except OSError:
            continue
        for entry in entries:
            directory = entry.is_dir(follow_symlinks=False)
            if not directory and entry.inode() not in wanted:
                continue
            try:
                there = os.lstat(entry.path)
            except OSError:
                continue
            if there.st_dev != device:
                continue  # something is mounted there
            path = os.path.join(inside, entry.name)
            if there.st_ino in wanted:
                wanted.discard(there.st_ino)
                found.append(path)
            if stat.S_ISDIR(there.st_mode):
                waiting.append((entry.path, path))
