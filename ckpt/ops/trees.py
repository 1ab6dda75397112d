"""The directories that travel with a container, each as parts NAME-NNN.tree, round after round.

upper        what the container changed of its root file system
tmpfs-KEY    a tmpfs; KEY as in runtime/launch.py
logs         the output of the container and its jobs
"""

from __future__ import annotations

import os
from collections.abc import Collection

from ckpt.ops.outgoing import Target, part_by
from runtime import launch
from runtime.container.record import Container
from runtime.tree import below
from runtime.tree.sync import Synchroniser

UPPER = "upper"
TMPFS = "tmpfs"
LOGS = "logs"


class Tree:
    """One of them, at the source. POINT: where the container has it; empty if it doesn't see it."""

    def __init__(
        self, name: str, directory: str, *, point: str = "", shift: tuple[int, int] | None = None
    ) -> None:
        self.name = name
        self._point = point
        self._copy = Synchroniser(directory, id_shift=shift)
        self._rounds = 0

    def round(self, target: Target, *, frozen: bool = False, mapped: Collection[bytes] = ()) -> int:
        """Send what changed since the last round; returns bytes of file content. Raises RuntimeFault.

        MAPPED: files (as the container sees them) that may have changed without a time stamp.
        """
        part = f"{self.name}-{self._rounds:03d}.tree"
        self._rounds += 1
        suspects = below(set(mapped), self._point) if self._point else ()
        return part_by(
            target,
            part,
            lambda fd: self._copy.round(fd, frozen=frozen, suspects=suspects).data_bytes,
        )


def trees_of(container: Container) -> list[Tree]:
    """Those of a running container that it sees."""
    base = container.record.id_base
    shift = (base, container.record.id_size) if base else None
    init = container.status().init_pid
    return [
        Tree(UPPER, str(container.paths.upper), point="/", shift=shift),
        *(
            Tree(
                f"{TMPFS}-{one.key}",
                one.directory(container),
                point=launch.mount_point(init, one.point),
                shift=shift,
            )
            for one in launch.tmpfs_of(container)
        ),
    ]


def tmpfs_bytes(container: Container) -> int:
    """How much lies in the tmpfs file systems of a running container."""
    total = 0
    for one in launch.tmpfs_of(container):
        found = os.statvfs(one.directory(container))
        total += (found.f_blocks - found.f_bfree) * found.f_frsize
    return total
