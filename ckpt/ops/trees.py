"""The directories that travel with a container, each as parts NAME-NNN.tree, round after round.

upper        what the container changed of its root file system
tmpfs-KEY    a tmpfs; KEY as in runtime/launch.py
volume-NAME  a named volume
logs         the output of the container and its jobs
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from ckpt.ops.outgoing import Target, part_by
from ckpt.ops.volumes import Volume
from runtime import launch
from runtime.container.record import Container
from runtime.tree import below
from runtime.tree.sync import Synchroniser

UPPER = "upper"
TMPFS = "tmpfs"
VOLUME = "volume"
LOGS = "logs"


class Tree:
    """One of them, at the source. POINTS: where the container has it."""

    def __init__(
        self, name: str, directory: str, *points: str, shift: tuple[int, int] | None = None
    ) -> None:
        self.name = name
        self._points = points
        self._copy = Synchroniser(directory, id_shift=shift)
        self._rounds = 0

    def round(self, target: Target, *, frozen: bool = False, mapped: Collection[bytes] = ()) -> int:
        """Send what changed since the last round; returns bytes of file content. Raises RuntimeFault.

        MAPPED: files (as the container sees them) that may have changed without a time stamp.
        """
        part = f"{self.name}-{self._rounds:03d}.tree"
        self._rounds += 1
        suspects = {path for point in self._points for path in below(set(mapped), point)}
        return part_by(
            target,
            part,
            lambda fd: self._copy.round(fd, frozen=frozen, suspects=suspects).data_bytes,
        )


def trees_of(container: Container, carried: Iterable[Volume]) -> list[Tree]:
    """Those of a running container that it sees. CARRIED: volumes that come along."""
    base = container.record.id_base
    shift = (base, container.record.id_size) if base else None
    init = container.status().init_pid
    return [
        Tree(UPPER, str(container.paths.upper), "/", shift=shift),
        *(
            Tree(
                f"{TMPFS}-{one.key}",
                one.directory(container),
                launch.mount_point(init, one.point),
                shift=shift,
            )
            for one in launch.tmpfs_of(container)
        ),
        *(
            # On disk as containers see them: nothing to shift.
            Tree(
                f"{VOLUME}-{volume.name}",
                volume.source,
                *(launch.mount_point(init, point) for point in volume.points),
            )
            for volume in carried
        ),
    ]


def tmpfs_bytes(container: Container) -> int:
    """How much lies in the tmpfs file systems of a running container."""
    total = 0
    for one in launch.tmpfs_of(container):
        found = os.statvfs(one.directory(container))
        total += (found.f_blocks - found.f_bfree) * found.f_frsize
    return total
