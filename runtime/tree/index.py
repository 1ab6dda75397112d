"""What a directory tree looked like at one moment, by stat(2) alone, and what has changed since.

A change is found by ctime, which a program can't set. Two things could hide one:

- Time stamps are coarse (a tick, up to 10 ms; kernels since 6.13 are finer): a file written twice
  within one tick shows the same ctime after both. So an entry whose ctime is as young as the
  snapshot itself is taken for changed the next time (`_TICK_NS`).
- A page of a shared mapping that is dirty already can be written again without any new time stamp.
  Where the file system has writeback, send() starts it before it reads, which makes the next write
  fault and stamp the file. tmpfs has none: `mapped.py` finds the files concerned, and the caller
  gives them as `suspects` in the round when the tasks are frozen.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.errors import Unsupported, from_os_error

from .beneath import MAX_PATH, open_beneath, shown

_TICK_NS = 20_000_000  # two ticks at the slowest clock (CONFIG_HZ=100)
_GONE = (FileNotFoundError, NotADirectoryError)


class Entry(NamedTuple):
    """One file's stat, host ids. Times in nanoseconds, size in bytes."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    ino: int
    dev: int
    nlink: int
    rdev: int
    blocks: int  # of 512 bytes


@dataclass(frozen=True, slots=True)
class Index:
    """A tree's entries by path relative to it (b"" is the tree's own directory), sorted."""

    entries: dict[bytes, Entry]
    taken_ns: int  # CLOCK_REALTIME before the first stat
    closed: frozenset[bytes] = frozenset()  # directories not entered: mount points, pruned ones


EMPTY = Index({}, 0)


@dataclass(frozen=True, slots=True)
class Changes:
    """What turns a tree that equals the old index into the new one, in this order."""

    removed: list[bytes] = field(default_factory=list)  # children before their directory
    changed: list[tuple[bytes, bool]] = field(default_factory=list)  # (path, made anew), sorted
    linked: list[tuple[bytes, bytes]] = field(default_factory=list)  # (path, first name)
    entries: dict[bytes, Entry] = field(default_factory=dict)  # of the new index

    def __bool__(self) -> bool:
        return bool(self.removed or self.changed or self.linked)

    @property
    def data_bytes(self) -> int:
        """Bytes of file content at most to be sent; for forecasts."""
        sizes = (self.entries[path] for path, _ in self.changed)
        return sum(min(e.size, e.blocks * 512) for e in sizes if stat.S_ISREG(e.mode))


def snapshot(directory: str) -> Index:
    """Walk a tree by stat. Mount points inside are recorded, not entered. Raises RuntimeFault."""
    try:
        root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, doing="reading the tree", target=directory) from error
    try:
        return scan(root_fd, name=directory)
    finally:
        os.close(root_fd)


def scan(
    root_fd: int,
    *,
    name: str,
    cross_mounts: bool = False,
    prune: Collection[tuple[int, int]] = (),
) -> Index:
    """snapshot() of an open directory. `prune`: directories, as (device, inode), not to enter."""
    taken = time.time_ns()
    found: dict[bytes, Entry] = {b"": _entry(os.fstat(root_fd))}
    closed: set[bytes] = set()
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        if path and (found[path].dev, found[path].ino) in prune:
            closed.add(path)
            continue
        try:
            _list(root_fd, path, found, waiting, closed, cross_mounts)
        except _GONE:
            found.pop(path, None)  # removed, or replaced, while we walk: the next walk sees it
        except OSError as error:
            where = shown(path, name)
            raise from_os_error(error, doing="reading the tree", target=where) from error
        except ValueError as error:
            raise Unsupported(
                doing="reading the tree",
                target=name,
                why=str(error),
                hint="make the directories less deep",
            ) from error
    return Index(dict(sorted(found.items())), taken, frozenset(closed))


def _list(
    root_fd: int,
    path: bytes,
    found: dict[bytes, Entry],
    waiting: list[bytes],
    closed: set[bytes],
    cross_mounts: bool,
) -> None:
    try:
        fd = open_beneath(
            root_fd, path, os.O_RDONLY | os.O_DIRECTORY, cross_mounts=cross_mounts or not path
        )
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        closed.add(path)
        return
    prefix = path + b"/" if path else b""
    try:
        with os.scandir(fd) as listing:
            for item in listing:
                try:
                    entry = _entry(item.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue
                child = prefix + os.fsencode(item.name)
                if len(child) > MAX_PATH:
                    raise ValueError(f"a path in it is longer than {MAX_PATH} bytes")
                found[child] = entry
                if stat.S_ISDIR(entry.mode):
                    waiting.append(child)
    finally:
        os.close(fd)


def _entry(st: os.stat_result) -> Entry:
    return Entry(
        st.st_mode,
        st.st_uid,
        st.st_gid,
        st.st_size,
        st.st_mtime_ns,
        st.st_ctime_ns,
        st.st_ino,
        st.st_dev,
        st.st_nlink,
        st.st_rdev,
        st.st_blocks,
    )


def is_whiteout(entry: Entry) -> bool:
    """overlayfs marks a deleted name with a character device 0:0 (overlayfs.rst)."""
    return stat.S_ISCHR(entry.mode) and entry.rdev == 0


def hard_links(entries: dict[bytes, Entry]) -> dict[tuple[int, int], list[bytes]]:
    """Names of the same file, in order, by (device, inode); only where the tree has several.

    Whiteouts are left out: overlayfs links them together to save inodes, which means nothing.
    """
    groups: dict[tuple[int, int], list[bytes]] = {}
    for path, entry in entries.items():
        if entry.nlink > 1 and not stat.S_ISDIR(entry.mode) and not is_whiteout(entry):
            groups.setdefault((entry.dev, entry.ino), []).append(path)
    return {key: paths for key, paths in groups.items() if len(paths) > 1}


def diff(old: Index, new: Index, suspects: Collection[bytes] = ()) -> Changes:
    """What must be sent so that a copy of `old` becomes a copy of `new`.

    `suspects`: paths that count as changed whatever their times say.
    """
    before, after = old.entries, new.entries
    young = old.taken_ns - _TICK_NS
    doubted = frozenset(suspects)
    removed = sorted((p for p in before if p not in after), reverse=True)
    replaced = [
        p
        for p, entry in before.items()
        if p in after and stat.S_ISDIR(entry.mode) != stat.S_ISDIR(after[p].mode)
    ]
    if replaced:
        removed = sorted({*removed, *replaced}, reverse=True)

    def unchanged(path: bytes, entry: Entry) -> bool:
        was = before.get(path)
        if was is None:
            return False
        if is_whiteout(entry):
            return is_whiteout(was)
        return (
            was[:8] == entry[:8]
            and was.rdev == entry.rdev
            and was.ctime_ns < young
            and path not in doubted
        )

    def in_place(path: bytes, entry: Entry) -> bool:
        was = before.get(path)
        if was is None or stat.S_IFMT(was.mode) != stat.S_IFMT(entry.mode):
            return False
        if stat.S_ISDIR(entry.mode):
            return True
        return stat.S_ISREG(entry.mode) and (was.dev, was.ino) == (entry.dev, entry.ino)

    changed: dict[bytes, bool] = {}
    linked: list[tuple[bytes, bytes]] = []
    grouped: set[bytes] = set()
    for (dev, ino), names in hard_links(after).items():
        grouped.update(names)
        # Names that shared this inode before are one file at the other end as well.
        kept = [
            p
            for p in names
            if (was := before.get(p)) is not None
            and (was.dev, was.ino) == (dev, ino)
            and stat.S_IFMT(was.mode) == stat.S_IFMT(after[p].mode)
            and was.nlink > 1
        ]
        first = kept[0] if kept else names[0]
        if len(kept) == len(names) and all(unchanged(p, after[p]) for p in names):
            continue
        anew = not in_place(first, after[first])
        changed[first] = anew
        linked += [(p, first) for p in names if p != first and (anew or p not in kept)]
    for path, entry in after.items():
        if path not in grouped and not unchanged(path, entry):
            changed[path] = not in_place(path, entry)

    # Whatever is made or removed in a directory changes its times at the other end: state them.
    for path in [*removed, *changed, *(p for p, _ in linked)]:
        parent = path.rpartition(b"/")[0]
        if path and parent in after and parent not in changed:
            changed[parent] = False
    return Changes(removed, sorted(changed.items()), linked, after)


def known(old: Index, new: Index, changes: Changes, missed: Collection[bytes]) -> Index:
    """What the other end has after it was sent `changes` = diff(old, new) except `missed`.

    A name that was missed is there as it was before, and counts as changed next time; so do the
    other names of its file.
    """
    if not missed:
        return new
    names = set(missed)
    groups = hard_links(new.entries)
    for path in missed:
        entry = new.entries[path]
        names.update(groups.get((entry.dev, entry.ino), ()))
    entries = dict(new.entries)
    removed = frozenset(changes.removed)
    for path in names:
        was = old.entries.get(path)
        if was is None or path in removed:
            del entries[path]
        else:
            entries[path] = was._replace(ctime_ns=new.taken_ns)
    return Index(dict(sorted(entries.items())), new.taken_ns, new.closed)
