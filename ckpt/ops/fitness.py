"""Does a spec fit what its container will be? Asked before anything is made, so that refusals change nothing."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Any

from ckpt.ops import places
from runtime.container import idrange
from runtime.errors import BadInput, NotFound, Unsupported
from runtime.paths import HostPaths
from runtime.security.capabilities import Capabilities, held
from runtime.spec import Spec

log = logging.getLogger(__name__)

ETC = ("/etc/resolv.conf", "/etc/hosts", "/etc/hostname")


def check(spec: dict[str, Any], *, user_namespace: bool, volumes: Path) -> None:
    """Raises BadInput, Unsupported, NotFound, naming the field. What lies in VOLUMES need not be there yet."""
    wanted = Spec(spec)
    for number, namespace in enumerate(wanted.namespaces):
        if namespace.path:
            raise _unsupported(
                f"linux.namespaces[{number}].path",
                f"a container has a {namespace.type} namespace of its own, or the host's",
            )
    if wanted.cgroups_path:
        raise _unsupported(
            "linux.cgroupsPath", "ckpt places containers in cgroups of its own, also after a move"
        )
    if user_namespace:
        _check_mappings(wanted)
        _check_ids(wanted)
    else:
        _say_what_is_not_granted(wanted)
    _check_sources(wanted, volumes)


def check_places(paths: HostPaths, spec: dict[str, Any]) -> None:
    """In a user namespace: can it reach and own what it mounts of this host? Raises Unsupported with the path."""
    sources = [mount.source for mount in Spec(spec).mounts if mount.type == "bind"]
    for problem in places.problems(paths, sources):
        raise Unsupported(doing="using", target=problem.what, why=problem.why, hint=problem.hint)


def _check_mappings(spec: Spec) -> None:
    """Ids from 0 on, as many as a range has, are what a container gets; which ids of the host is up to the host."""
    for field, mappings in (
        ("uidMappings", spec.uid_mappings),
        ("gidMappings", spec.gid_mappings),
    ):
        if not mappings:
            continue
        highest = max(mapping.container + mapping.size for mapping in mappings)
        if sum(mapping.size for mapping in mappings) != highest:
            raise _unsupported(
                f"linux.{field}", "the container's ids have to begin at 0, without gaps"
            )
        if highest > idrange.SIZE:
            raise _unsupported(f"linux.{field}", f"a container has {idrange.SIZE} ids")


def _check_ids(spec: Spec) -> None:
    process = spec.process
    named = [("uid", process.uid), ("gid", process.gid)]
    named += [("additionalGids", gid) for gid in process.additional_gids]
    for what, number in named:
        if number >= idrange.SIZE:
            raise BadInput(
                doing="reading the spec's",
                target=f"process.user.{what}",
                why=f"{number} is beyond the {idrange.SIZE} ids of a container's user namespace",
                hint="--userns host",
            )


def _say_what_is_not_granted(spec: Spec) -> None:
    """With the host's ids a container can't have what we don't have ourselves; the runtime-spec wants that logged."""
    missing = Capabilities.from_spec(spec.process.capabilities).beyond(held())
    if missing:
        log.warning("not granted, since ckpt itself lacks them: %s", ", ".join(missing))


def _check_sources(spec: Spec, volumes: Path) -> None:
    for mount in spec.mounts:
        own = Path(mount.source).parent == volumes
        if mount.type == "bind" and not own and not os.path.exists(mount.source):
            raise NotFound(
                doing="mounting",
                target=mount.destination,
                why=f"its source {mount.source} isn't there on this host",
            )


def check_owners(spec: dict[str, Any], layer: Path) -> None:
    """In a user namespace nobody can change what belongs to an id outside of it, so mount points can't be made there.

    Raises BadInput with the directory and its owner. LAYER: the root file system with its natural owners.
    """
    points = [mount.destination for mount in Spec(spec).mounts]
    for point in [*points, *ETC]:
        parent = layer
        for part in point.strip("/").split("/"):
            held = parent.lstat()
            if not stat.S_ISDIR(held.st_mode):
                break  # a symbolic link: where it leads is a path of its own
            if not os.path.lexists(parent / part):
                for what, number in (("user", held.st_uid), ("group", held.st_gid)):
                    if number >= idrange.SIZE:
                        inside = "/" + str(parent.relative_to(layer)).removeprefix(".")
                        raise BadInput(
                            doing="making the mount point",
                            target=point,
                            why=f"{inside} belongs to {what} {number}, beyond the {idrange.SIZE} ids of a container",
                            hint="give the files owners from 0 on (tar --numeric-owner), or use --userns host",
                        )
                break
            parent = parent / part


def _unsupported(field: str, why: str) -> Unsupported:
    return Unsupported(doing="reading the spec's", target=field, why=why)
