"""A container's tmpfs file systems, made by host root as mounts that hang nowhere yet.

Not by pid 1 in its own namespaces: CRIU would then take them for a part of what it dumps, and run tar and gzip for each
one at both ends, in the frozen window. So they come from outside, like volumes, and their contents travel as those of
the upper directory do. A restore makes them early, fills them while the container still runs at the source, and hands
the descriptors to the monitor; should it end before that, they end with it.
"""

from __future__ import annotations

import os

from runtime import syscalls as sc


def make(flags: int, data: str, *, id_base: int) -> int:
    """A detached mount's descriptor; see fsopen(2), fsmount(2). Raises OSError naming the option.

    FLAGS: MS_*; MS_RDONLY is attach()'s. DATA: options as of tmpfs(5), whose owners are those in the container, so
    ID_BASE is added to them. Device nodes have mounts of their own: none works in here.
    """
    context = sc.fsopen("tmpfs")
    try:
        options = dict(part.partition("=")[::2] for part in data.split(",") if part)
        for name in ("uid", "gid"):
            options[name] = str(int(options.get(name, "0")) + id_base)
        for name, value in options.items():
            sc.fsconfig_string(context, name, value)
        sc.fsconfig_create(context)
        attributes = sc.mount_attributes(flags & ~sc.MS_RDONLY)
        return sc.fsmount(context, attributes | (sc.MOUNT_ATTR_NODEV if id_base else 0))
    finally:
        os.close(context)


def attach(fd: int, target: str, flags: int) -> None:
    """Put the mount to TARGET, and close the descriptor."""
    try:
        if flags & sc.MS_RDONLY:
            sc.mount_setattr(fd, sc.MOUNT_ATTR_RDONLY)
        sc.move_mount(fd, target)
    finally:
        os.close(fd)
    sc.mount(None, target, None, sc.MS_PRIVATE)
