"""Before a dump: every reason why it would fail, while the container still runs undisturbed.

The state, CRIU, what the processes hold (runtime/criu/obstacles.py), and room for the checkpoint where it goes into
the store. A stream has no disk of ours to fill.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ckpt.ops.host import Host
from ckpt.ops.preflight import tree_size
from ckpt.ops.trees import tmpfs_bytes
from ckpt.ops.whole import wait_whole
from images.errors import NoSpace
from runtime.container.record import Container
from runtime.criu.obstacles import Obstacle, obstacles
from runtime.errors import Unsupported

_SPARE = 16 << 20
"""Bytes that the store should have left over: CRIU's tables, manifests, file systems' own needs."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a checkpoint will be like. images, files, free: bytes, the first two estimated."""

    container: str
    processes: int
    images: int
    files: int
    free: int
    obstacles: tuple[Obstacle, ...]


def forecast(host: Host, container: Container) -> Forecast:
    """Look, and touch nothing. Raises WrongState, and NotFound or Unsupported for CRIU."""
    container.require("running", doing="dumping")
    wait_whole(container)
    assert host.criu  # looked up now, since looking raises
    pids = host.cgroup(container).pids()
    space = os.statvfs(host.store.directory)
    return Forecast(
        container=container.record.name,
        processes=len(pids),
        images=sum(map(own_memory, pids)),
        files=tree_size(container.paths.upper) + tmpfs_bytes(container),
        free=space.f_bavail * space.f_frsize,
        obstacles=tuple(obstacles(pids)),
    )


def require(host: Host, container: Container, *, store: bool) -> Forecast:
    """forecast(), where what speaks against the dump is raised: Unsupported, NoSpace. STORE: it goes into the store."""
    found = forecast(host, container)
    target = f"container {container.record.name}"
    if found.obstacles:
        more = len(found.obstacles) - 3
        told = [f"{one.what}: {one.why}" for one in found.obstacles[:3]]
        told += [f"and {more} more"] if more > 0 else []
        raise Unsupported(
            doing="dumping", target=target, why="; ".join(told), hint=found.obstacles[0].hint
        )
    need = found.images + found.files + _SPARE
    if store and need > found.free:
        raise NoSpace(
            doing="dumping",
            target=target,
            why=f"about {need >> 20} MiB are needed, {found.free >> 20} MiB are free in {host.store.directory}",
            hint="ckpt checkpoints prune; or write it elsewhere with -o",
        )
    return found


def own_memory(pid: int) -> int:
    """Bytes of a process that no file holds: what CRIU must carry. Shared pages count by their share."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:", "SwapPss:")):
                total += int(line.split()[1]) << 10
    except OSError:
        return 0  # it ended meanwhile
    return total
