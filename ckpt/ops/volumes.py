"""Named volumes: directories of this host that containers share and that outlive them.

A volume lies in `<root>/volumes/NAME` with the owners that the containers see (root is 0): it is mapped into each
container's own id range when it is mounted, so that several containers, and the host's tools, agree on whose a file is.
How one travels with its container: ckpt/ops/volume_arrival.py.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.container.record import Container, Record, check_name
from runtime.errors import BadInput
from runtime.files import discard
from runtime.paths import HostPaths


@dataclass(frozen=True, slots=True)
class Volume:
    """A named volume as one container mounts it. points: where, inside."""

    name: str
    source: str
    points: tuple[str, ...]
    writable: bool


def with_source(text: str, paths: HostPaths) -> str:
    """`NAME:DST[:ro]` with the volume's directory as its source; what begins with a path stays as it is."""
    source, colon, rest = text.partition(":")
    if not colon or source.startswith("/"):
        return text
    if "/" in source:
        raise BadInput(
            doing="reading --volume",
            target=text,
            why="its source is neither a volume's name nor an absolute path",
            hint='"$PWD/data:/data"',
        )
    return f"{paths.volumes / check_name(source, 'volume name')}:{rest}"


def make_missing(paths: HostPaths, spec: dict[str, Any], layer: Path) -> None:
    """Make the named volumes that a spec mounts and that are not there yet.

    A new one gets owner and mode of the directory of the root file system (LAYER) over which it is mounted, so that a
    service that isn't root can write to it.
    """
    for mount in spec.get("mounts") or ():
        source = Path(mount.get("source") or "")
        if source.parent != paths.volumes or source.exists():
            continue
        paths.volumes.mkdir(mode=0o711, exist_ok=True)
        fresh = source.with_name(f".{source.name}.new")
        fresh.mkdir(mode=0o755, exist_ok=True)
        below = layer / mount["destination"].lstrip("/")
        if below.is_dir() and not below.is_symlink():
            held = below.stat()
            fresh.chmod(stat.S_IMODE(held.st_mode))
            shutil.chown(fresh, held.st_uid, held.st_gid)
        fresh.rename(source)


def is_bind(mount: dict[str, Any]) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def named(paths: HostPaths, spec: dict[str, Any]) -> list[Volume]:
    """The named volumes that a spec mounts, each once."""
    found: dict[str, Volume] = {}
    for mount in spec.get("mounts") or ():
        source = Path(mount.get("source") or "")
        if not is_bind(mount) or source.parent != paths.volumes:
            continue
        before = found.get(source.name)
        found[source.name] = Volume(
            source.name,
            str(source),
            (*(before.points if before else ()), mount["destination"]),
            (before.writable if before else False) or "ro" not in (mount.get("options") or ()),
        )
    return list(found.values())


def binds(paths: HostPaths, spec: dict[str, Any]) -> list[tuple[str, str]]:
    """(path of the host, place in the container) of what a spec mounts from outside `<root>/volumes`."""
    return [
        (str(mount.get("source")), str(mount["destination"]))
        for mount in spec.get("mounts") or ()
        if is_bind(mount) and Path(mount.get("source") or "").parent != paths.volumes
    ]


def sharers(
    everyone: Iterable[Container], name: str, *, writable: bool, but: str = ""
) -> list[str]:
    """Names of the containers (not of id BUT) that mount volume NAME, if they or we (WRITABLE) may write to it."""
    found = []
    for container in everyone:
        if container.record.id == but:
            continue
        for volume in named(container.host, container.record.spec):
            if volume.name == name and (writable or volume.writable):
                found.append(container.record.name)
    return found


def is_empty(path: Path) -> bool:
    """Whether PATH is an empty directory, or nothing."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True


def take_back(paths: HostPaths, record: Record, everyone: Iterable[Container]) -> None:
    """Delete the volumes that came with a container which did not come to be. Again and again is fine."""
    others = [container for container in everyone if container.record.id != record.id]
    for name in record.brought:
        if not sharers(others, check_name(name, "volume name"), writable=True):
            discard(paths.volumes / name)
    if paths.volumes.is_dir():
        for left in paths.volumes.glob(f".*.{record.id}"):
            discard(left)


def moved_away(paths: HostPaths, record: Record, everyone: Iterable[Container]) -> None:
    """A migration is over, and the container's volumes live on there: delete them here.

    Those that it could only read stay: it got a copy.
    """
    others = [container for container in everyone if container.record.id != record.id]
    for volume in named(paths, record.spec):
        if volume.writable and not sharers(others, volume.name, writable=True):
            discard(Path(volume.source))


def sweep(paths: HostPaths, live: Iterable[str]) -> list[str]:
    """Remove copies that were only to be compared, of containers that aren't among LIVE (ids); returns their names."""
    done = []
    kept = set(live)
    for left in sorted(paths.volumes.glob(".*")) if paths.volumes.is_dir() else ():
        owner = left.name.rpartition(".")[2]
        if owner != "new" and owner not in kept:
            discard(left)
            done.append(left.name[1:].rpartition(".")[0])
    return done
