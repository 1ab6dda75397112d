"""Making a container's cgroup, and finding one that was made."""

from __future__ import annotations

import contextlib
import errno

from runtime.cgroups import v1
from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.hierarchy import cgroup_path, parents, wait
from runtime.cgroups.layout import Layout, Tree
from runtime.cgroups.resources import Resources
from runtime.errors import Conflict, NotPermitted, SystemFault, Unsupported, from_os_error

_PATIENCE = 2.0  # seconds


def create(layout: Layout, parent: str, name: str) -> Cgroup:
    """Make `parent`/`name` in every usable tree, and `parent` where it isn't there.

    On a failure nothing of it stays. Raises BadInput, Conflict (it exists), Unsupported (no
    usable tree), NotPermitted, SystemFault.
    """
    path = cgroup_path(parent, name)
    if not layout.usable:
        raise Unsupported(
            doing="making the cgroup",
            target=path,
            why="no cgroup tree is mounted that can be written",
            hint="mount -t cgroup2 none /sys/fs/cgroup",
        )
    cgroup = Cgroup(layout, path)
    made: list[str] = []
    try:
        for tree in layout.usable:
            _create_in(layout, tree, path, made)
        cgroup.enable(Resources())
    except BaseException as error:
        for directory in reversed(made):
            with contextlib.suppress(OSError):
                layout.fs.rmdir(directory)
        cgroup.remove_empty_parents()
        if isinstance(error, OSError):
            target = error.filename or path
            raise from_os_error(error, doing="making the cgroup", target=target) from error
        raise
    return cgroup


def open(layout: Layout, parent: str, name: str) -> Cgroup:
    """The existing cgroup `parent`/`name`. Raises BadInput, NotFound, NotPermitted (not ours)."""
    cgroup = Cgroup(layout, cgroup_path(parent, name))
    cgroup.require_ours("opening the cgroup")
    return cgroup


def _create_in(layout: Layout, tree: Tree, path: str, made: list[str]) -> None:
    """Somebody who removes the last container takes the parent away, at any point between our
    steps; whatever then says "no such file", the answer is to begin again."""

    def try_it() -> bool:
        try:
            for parent in reversed(list(parents(path))):
                make_parent(layout, tree, parent)
            _make_leaf(layout, tree, path, made)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
            return False
        return True

    if not wait(try_it, _PATIENCE):
        raise SystemFault(
            doing="making the cgroup",
            target=tree.path(path),
            why="its parent goes away again and again",
            retry=True,
        )


def _make_leaf(layout: Layout, tree: Tree, path: str, made: list[str]) -> None:
    directory = tree.path(path)
    try:
        layout.fs.mkdir(directory)
    except FileExistsError:
        raise Conflict(
            doing="making the cgroup",
            target=directory,
            why="it is there already",
            hint="a container that died may have left it: remove that one",
        ) from None
    made.append(directory)
    layout.fs.mark(directory)
    if "cpuset" in tree.controllers and tree.version == 1:
        v1.inherit_cpuset(layout.fs, directory)


def make_parent(layout: Layout, tree: Tree, parent: str) -> None:
    """Make the cgroup `parent` in `tree`, or see that it is ours. Raises NotPermitted, OSError."""
    directory = tree.path(parent)
    try:
        layout.fs.mkdir(directory)
        layout.fs.mark(directory)
    except FileExistsError:
        # Another ckpt may be between its mkdir and its mark.
        if not wait(lambda: layout.fs.marked(directory), 0.2):
            raise NotPermitted(
                doing="making cgroups in",
                target=directory,
                why="ckpt didn't make it (it lacks our mark)",
            ) from None
    if "cpuset" in tree.controllers and tree.version == 1:
        v1.inherit_cpuset(layout.fs, directory)
