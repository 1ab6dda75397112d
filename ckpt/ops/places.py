"""Whether directories of this host can be part of a container that has a user namespace.

Its root is an ordinary user here. It walks to its file systems through ckpt's directories, so every directory above
them must let others pass. And what it mounts is mapped into its id range by the mount itself, which not every file
system can (mount_setattr(2), MOUNT_ATTR_IDMAP). Both would fail late and in the kernel's words: "Permission denied"
somewhere, "Invalid argument".
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime import mountinfo, syscalls
from runtime.container import idrange
from runtime.files import mounts_below
from runtime.paths import HostPaths
from runtime.stage.namespaces import user_namespace

_ACL = "system.posix_acl_access"


@dataclass(frozen=True, slots=True)
class Problem:
    """what: a path."""

    what: str
    why: str
    hint: str


def problems(paths: HostPaths, sources: Iterable[str]) -> list[Problem]:
    """What speaks against a container here that mounts SOURCES; those that aren't there are somebody else's matter."""
    found = []
    closed = closed_above(paths)
    if closed is not None:
        found.append(
            Problem(
                str(paths.root),
                f"other users can't pass through {closed}, and a container's root is one of them",
                f"chmod o+x {closed}, or choose another place with --root or CKPT_ROOT",
            )
        )
    there = [(source, True) for source in sources if os.path.exists(source)]
    root = [(str(paths.root), False)] if paths.root.is_dir() else []
    return found + _unmappable([*root, *there])


def closed_above(paths: HostPaths) -> Path | None:
    """The first directory above ckpt's own through which other users can't pass. It sees to its own (HostPaths.make).

    One with an access control list is given the benefit of the doubt: that may let the container's ids pass.
    """
    own = (paths.root, paths.run)
    for directory in [*reversed(paths.root.parents), *reversed(paths.run.parents)]:
        if directory in own:
            continue
        try:
            mode = directory.stat().st_mode
        except FileNotFoundError:
            continue  # ckpt makes it
        if not mode & 0o001 and _ACL not in os.listxattr(directory):
            return directory
    return None


def file_system(place: str | Path) -> str:
    """The type of the file system at PLACE."""
    device = os.stat(place).st_dev
    kinds = (mount.kind for mount in mountinfo.mounts() if mount.device == device)
    return next(kinds, "unknown")  # btrfs' subvolumes have device numbers of their own


def _unmappable(trees: list[tuple[str, bool]]) -> list[Problem]:
    """Of TREES, (path, with all mounts below it), those whose owners can't be mapped: tried, on detached copies."""
    if not trees:
        return []
    found = []
    with warnings.catch_warnings():
        # Python 3.12 warns of threads. The child takes no lock of Python's: two system calls.
        warnings.simplefilter("ignore", DeprecationWarning)
        userns = user_namespace(idrange.FIRST, idrange.SIZE)
    try:
        for source, recursive in trees:
            if not _why_not(source, userns, recursive):
                continue
            # Which of the mounts below it, if it isn't the one that it lies on.
            below = [source, *(mounts_below(Path(source)) if recursive else ())]
            at, why = next(
                ((at, why) for at in below if (why := _why_not(at, userns, recursive=False))),
                (source, "something below it can't"),
            )
            found.append(
                Problem(
                    source,
                    f"{at} is on {file_system(at)}, which can't show its files with a container's owners ({why})",
                    "use a directory on ext4, xfs, btrfs or (Linux 6.3) tmpfs, or --userns host",
                )
            )
    finally:
        os.close(userns)
    return found


def _why_not(source: str, userns: int, recursive: bool) -> str:
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
    try:
        tree = syscalls.open_tree(source, flags | (syscalls.AT_RECURSIVE if recursive else 0))
        try:
            syscalls.mount_setattr(
                tree, syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns, recursive=recursive
            )
        finally:
            os.close(tree)
    except OSError as error:
        return error.strerror or str(error)
    return ""
