"""This host as the operations see it: its directories, stores and cgroup layout. It holds no state of its own."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from functools import cached_property

from ckpt.ops import journal
from images.store import Store
from runtime import cgroups
from runtime.container import record
from runtime.container.record import Container
from runtime.criu import binary
from runtime.errors import NotFound
from runtime.files import locked
from runtime.layers import LayerStore
from runtime.paths import HostPaths

KEPT_LOGS = 20


class Host:
    def __init__(self, paths: HostPaths) -> None:
        self.paths = paths

    @classmethod
    def here(cls, root: str | None = None) -> Host:
        return cls(HostPaths.of(root))

    def ready(self) -> None:
        """Make the directories; before anything is written."""
        self.paths.make()

    @cached_property
    def layout(self) -> cgroups.Layout:
        return cgroups.detect()

    @cached_property
    def layers(self) -> LayerStore:
        return LayerStore(str(self.paths.layers))

    @cached_property
    def store(self) -> Store:
        return Store(str(self.paths.checkpoints))

    @cached_property
    def criu(self) -> binary.Criu:
        return binary.find()

    @property
    def cgroup_parent(self) -> str:
        tag = self.paths.tag
        return f"{self.layout.default_parent}/{tag}" if tag else self.layout.default_parent

    def cgroup(self, container: Container) -> cgroups.Cgroup:
        return cgroups.open(self.layout, self.cgroup_parent, container.record.id)

    def find(self, name: str) -> Container:
        return record.find(self.paths, name)

    def containers(self) -> list[Container]:
        return record.all_containers(self.paths)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held while names, id ranges and addresses are given out."""
        return locked(self.paths.host_lock, what="this host's containers")

    def keep_log(self, log: str, title: str) -> str:
        """Copy a log to where it outlives its container; returns its new path. The oldest of many go."""
        directory = self.paths.root / "logs"
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        kept = directory / f"{title}-{stamp}-{time.time_ns() // 1000 % 10**6:06d}.log"
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            shutil.copyfile(log, kept)
        except OSError:
            kept.unlink(missing_ok=True)  # half of it, on a full disk
            return log
        for old in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)
        return str(kept)

    def command(self, *words: str) -> list[str]:
        """How a process of ours, with this root, is started without the environment of a shell."""
        return [sys.executable, "-m", "ckpt", "--root", str(self.paths.root), *words]


@contextlib.contextmanager
def lock_container(
    container: Container, *, wait: float = 30.0, settled: bool = True
) -> Iterator[None]:
    """Held by whatever changes a container's life: one at a time.

    SETTLED: refuse while a migration has the only say, as its journal tells. Raises Conflict; NotFound when the
    container was removed meanwhile (its directory must not come back through the lock).
    """
    name = container.record.name
    with contextlib.ExitStack() as held:
        with contextlib.suppress(FileNotFoundError):
            held.enter_context(
                locked(container.paths.lock, what=f"container {name}", wait=wait, make=False)
            )
        if not container.paths.record.exists():
            raise NotFound(doing="locking", target=f"container {name}", why="it is gone")
        if settled:
            journal.require_settled(container.host.journals, container.record.id, name)
        yield


@contextlib.contextmanager
def held_container(
    host: Host, name: str, *, wait: float = 30.0, settled: bool = True
) -> Iterator[Container]:
    """The container NAME, locked as by lock_container(), and as who had it before left it.

    Raises NotFound, Conflict.
    """
    container = host.find(name)
    with lock_container(container, wait=wait, settled=settled):
        yield host.find(container.record.id)
