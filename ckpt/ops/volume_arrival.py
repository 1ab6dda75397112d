"""The volumes of a container that is coming in.

What a checkpoint stream and a migration bring along is put in place like the upper directory, round by round. What was
dumped into the store stayed where it was, so it must still be there. In either case the spec's sources become this
host's directories.

A volume that comes along and is here already is never written to: the arriving copy lies aside, and nothing runs unless
it turns out to hold the same. Memory that belongs to other files would ruin both.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ckpt.ops import volumes
from images.manifest import Manifest
from runtime.container.record import Container, Record, check_name
from runtime.errors import BadInput, Conflict
from runtime.files import discard
from runtime.paths import HostPaths
from runtime.tree import tree_digest
from runtime.tree.receive import receive


def to_manifest(every: Iterable[volumes.Volume], *, carried: bool) -> list[dict[str, Any]]:
    """What a manifest says of the volumes that a container mounts. CARRIED: they come along."""
    return [{"name": v.name, "source": v.source, "comes": carried} for v in every]


def keep_volumes(container: Container) -> None:
    """What came along stays from now on, whatever becomes of the container."""
    if container.record.brought:
        container.record.brought = []
        container.save()


class ArrivingVolumes:
    def __init__(self, paths: HostPaths, manifest: Manifest) -> None:
        """Raises BadInput for a manifest that names none properly."""
        self._paths = paths
        self._manifest = manifest
        self._sources: dict[str, str] = {}
        self._comes: set[str] = set()
        self._aside: dict[str, Path] = {}
        for entry in manifest.container.get("volumes") or ():
            if not isinstance(entry, Mapping) or not isinstance(entry.get("source"), str):
                raise BadInput(doing="reading", target="the manifest", why="a volume has no source")
            name = check_name(str(entry.get("name")), "volume name")
            self._sources[entry["source"]] = name
            if entry.get("comes"):
                self._comes.add(name)

    # ---- before anything is made

    def problems(self) -> list[str]:
        """What must be on this host and isn't, a line each."""
        found = []
        for mount in self._manifest.spec.get("mounts") or ():
            if not volumes.is_bind(mount):
                continue
            source, point = str(mount.get("source")), mount.get("destination")
            name = self._sources.get(source)
            if name is None and not os.path.exists(source):
                found.append(f"{source} of the host, which is mounted at {point}, is not here")
            elif name and name not in self._comes and not (self._paths.volumes / name).is_dir():
                found.append(
                    f"volume {name} is not here, and the checkpoint doesn't hold it "
                    "(one that dump -o writes does)"
                )
        return found

    def notes(self) -> list[str]:
        """What is different from before, for people."""
        return [
            f"volume {name} is as it is now, not as it was at the dump"
            for name in self._sources.values()
            if name not in self._comes
        ]

    @property
    def sources(self) -> list[str]:
        """Paths of this host that are mounted, whether they are there or not."""
        named = [str(self._paths.volumes / name) for name in self._sources.values()]
        binds = [
            str(m.get("source"))
            for m in self._manifest.spec.get("mounts") or ()
            if volumes.is_bind(m)
        ]
        return named + [source for source in binds if source not in self._sources]

    # ---- a place for them

    def place(self, record: Record, everyone: Iterable[Container]) -> None:
        """Make RECORD's spec name this host's directories, and note in it which of them are new."""
        record.spec = copy.deepcopy(record.spec)
        for mount in record.spec.get("mounts") or ():
            name = self._sources.get(str(mount.get("source")))
            if name is not None and volumes.is_bind(mount):
                mount["source"] = str(self._paths.volumes / name)
        others = list(everyone)
        record.brought = []
        for name in sorted(self._comes):
            unused = not volumes.sharers(others, name, writable=True)
            if unused and volumes.is_empty(self._paths.volumes / name):
                record.brought.append(name)
            else:
                self._aside[name] = self._paths.volumes / f".{name}.{record.id}"

    def make(self, record: Record) -> None:
        """The directories; the record is on disk."""
        if not self._comes:
            return
        self._paths.volumes.mkdir(mode=0o711, exist_ok=True)
        for path in (*(self._paths.volumes / n for n in record.brought), *self._aside.values()):
            path.mkdir(mode=0o755, exist_ok=True)

    def apply(self, name: str, fd: int) -> None:
        """One round over volume NAME. Raises BadInput unless the manifest announced it."""
        if name not in self._comes:
            raise BadInput(
                doing="receiving", target=f"volume {name!r}", why="the container has none such"
            )
        receive(fd, str(self._aside.get(name) or self._paths.volumes / name))

    @property
    def to_compare(self) -> bool:
        """Whether settle() has something to do."""
        return bool(self._aside)

    def settle(self) -> None:
        """Everything came: what was here before must be the same. Raises Conflict."""
        for name, came in self._aside.items():
            here = self._paths.volumes / name
            if tree_digest(str(here)) != tree_digest(str(came)):
                raise Conflict(
                    doing="restoring",
                    target=f"volume {name}",
                    why="this host has one of that name with other content",
                    hint=f"move {here} away, and the one of the checkpoint takes its place",
                )
            discard(came)
        self._aside.clear()
