"""Paths of cgroups, the way up and down from one, and passing controllers down to it."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator

from runtime.cgroups.layout import Layout
from runtime.errors import BadInput, Conflict, from_os_error

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}")
_FIRST_NAP, _LONGEST_NAP = 0.0005, 0.02


def cgroup_path(parent: str, name: str) -> str:
    """The checked path of `name` in `parent`. Raises BadInput."""
    path = f"{parent.rstrip('/')}/{name}"
    parts = path.split("/")[1:]
    bad = not path.startswith("/") or not all(_PART.fullmatch(part) for part in parts)
    if bad or not parts[0].startswith("ckpt") or len(parts) < 2 or "/" in name or len(path) > 1024:
        raise BadInput(
            doing="naming a cgroup",
            target=repr(path),
            why="it has to be below a top-level cgroup named ckpt..., of plain names",
            hint="names are of letters, digits and _ . : @ -, and begin with a letter or digit",
        )
    return path


def parents(path: str) -> Iterator[str]:
    """The cgroups above `path`, nearest first, without the root."""
    path = os.path.dirname(path)
    while path != "/":
        yield path
        path = os.path.dirname(path)


def walk(layout: Layout, directory: str) -> Iterator[str]:
    yield directory
    try:
        children = layout.fs.subdirs(directory)
    except OSError:
        return
    for child in children:
        yield from walk(layout, child)


def enable(layout: Layout, path: str, controllers: list[str]) -> None:
    """Pass `controllers` of the v2 tree down from its root to the cgroup at `path`.

    Only adds. Raises Conflict where a cgroup on the way has processes of its own (only the true
    root may have both), NotPermitted, SystemFault.
    """
    tree = layout.unified
    if tree is None:
        return
    for above in [*reversed(list(parents(path))), path]:
        parent = tree.path(os.path.dirname(above))
        file = f"{parent}/cgroup.subtree_control"
        missing = [c for c in controllers if c not in layout.fs.read(file).split()]
        for controller in missing:
            # One at a time: a write with several is refused whole for one of them.
            try:
                layout.fs.write(file, f"+{controller}")
            except OSError as error:
                if error.errno == errno.EBUSY:
                    raise Conflict(
                        doing=f"enabling the {controller} controller in",
                        target=parent,
                        why="it has processes of its own, and cgroup v2 then passes nothing on",
                        hint="run ckpt on the host, or move them into a child cgroup",
                    ) from error
                doing = f"enabling the {controller} controller in"
                raise from_os_error(error, doing=doing, target=parent) from error


def wait(condition: Callable[[], bool], timeout: float) -> bool:
    """Poll: neither rmdir nor the v1 freezer has an event to wait for."""
    end = time.monotonic() + timeout
    nap = _FIRST_NAP
    while not condition():
        if time.monotonic() >= end:
            return condition()
        time.sleep(nap)
        nap = min(nap * 2, _LONGEST_NAP)
    return True
