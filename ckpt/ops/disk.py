"""How much a container may write: `--disk`, kept by its file system's project quotas.

    create, restore   place()     the directory of its writable layer gets a project of its own, before a file is in it
    start             lift()      no limit while its root is mounted: overlayfs makes directories of its own, and where
                                  they find no room, as in a container that is full, the root would be read-only
    start, restore    enforce()   the limit, before a program of the container runs
    update            changed()   another one
    rm                release()   the file system forgets the limit

Where there are project quotas every container gets a project, with or without a limit: files that are there already
couldn't be put into one later (a symbolic link can't, and what isn't in it can't be renamed into directories that are).

A container without a user namespace is refused. Whoever owns a file may take it out of its project, unless he is in a
user namespace of his own (ioctl_xfs_fssetxattr(2)), and CAP_SYS_RESOURCE of the first one goes beyond limits on ext4.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ckpt.ops.places import file_system
from runtime.container.record import Container
from runtime.errors import BadInput, RuntimeFault, Unsupported
from runtime.quota import project
from runtime.spec import DISK

log = logging.getLogger(__name__)

LEAST = 1 << 20
"""Bytes: overlayfs wants some directories of its own, and a container some files."""
NO_LIMIT = -1

_EXT4 = "umount it, tune2fs -O project -Q prjquota DEVICE, and mount it with -o prjquota (CONFIG_QFMT_V2)"
_XFS = "mount it with -o prjquota; a root file system, by rootflags=prjquota on the kernel's command line"
_OTHER = "put ckpt's root on ext4 or XFS with project quotas, with --root or CKPT_ROOT"


def limit_of(spec: Mapping[str, Any]) -> int | None:
    """The limit in bytes that SPEC has; None: none. Raises BadInput."""
    text = (spec.get("annotations") or {}).get(DISK)
    if text is None or text == str(NO_LIMIT):
        return None
    if not (text.isascii() and text.isdigit() and LEAST <= int(text) < 1 << 63):
        raise BadInput(
            doing="reading the disk limit",
            target=text,
            why=f"it is a number of bytes from {LEAST} on",
            hint="for example --disk 500m; -1: no limit",
        )
    return int(text)


def why_not(place: Path) -> tuple[str, str]:
    """Why what is written at PLACE can't be limited, and what to do; empty if it can."""
    found = project.problem(place)
    if not found:
        return "", ""
    kind = file_system(place)
    hint = {"ext4": _EXT4, "xfs": _XFS}.get(kind, _OTHER)
    if found == project.NOT_ENFORCED:
        hint = "mount it with -o prjquota"
    if found == project.CLOSED:
        hint = "run ckpt as root of the host itself"
    return f"the file system of {place} ({kind}) has {found}", hint


def check(place: Path, spec: Mapping[str, Any], *, user_namespace: bool) -> None:
    """Raises Unsupported, BadInput when SPEC has a limit that can't be kept below PLACE."""
    if limit_of(spec) is None:
        return
    if not user_namespace:
        raise BadInput(
            doing="limiting",
            target="--disk",
            why="a container without a user namespace could take its files out of the limit",
            hint="leave out --userns host",
        )
    _require(place)


def _require(place: Path) -> None:
    why, hint = why_not(place)
    if why:
        raise Unsupported(doing="limiting", target="--disk", why=why, hint=hint)


def place(container: Container) -> None:
    """Make the directory of its writable layer, in a project of its own where the file system has such."""
    rw = container.paths.rw
    rw.mkdir(mode=0o755, exist_ok=True)
    limited = limit_of(container.record.spec) is not None
    if limited:
        _require(rw)
    if not project.problem(rw):
        try:
            project.claim(rw)
        except RuntimeFault as fault:
            if limited:
                raise
            log.warning("%s", fault)  # nobody has asked for a limit yet


def lift(container: Container) -> None:
    """No limit until enforce(), for one that has a limit. Raises Unsupported when that can't be kept any more."""
    if limit_of(container.record.spec) is not None:
        _require_project(container)
        project.limit(container.paths.rw, 0)


def enforce(container: Container) -> None:
    """Put its limit into force, if it has one. Raises Unsupported when that isn't possible any more."""
    most = limit_of(container.record.spec)
    if most is not None:
        _require_project(container)
        project.limit(container.paths.rw, most)


def _require_project(container: Container) -> None:
    rw = container.paths.rw
    _require(rw)
    if not project.of(rw):
        raise Unsupported(
            doing="limiting",
            target=f"the disk of container {container.record.name}",
            why="it was made when its file system had no project quotas, so its files aren't counted",
            hint="ckpt dump it, and restore it",
        )


@contextlib.contextmanager
def changed(container: Container, wish: Mapping[str, Any]) -> Iterator[None]:
    """What the spec WISH says of the disk, put into force and into the record, which the body saves.

    If the body fails, all is as it was. Raises Unsupported, BadInput.
    """
    said = wish["annotations"].get(DISK)
    if said is None:
        yield
        return
    rw, record = container.paths.rw, container.record
    check(rw, wish, user_namespace=bool(record.id_base))
    most = limit_of(wish)
    record.spec.setdefault("annotations", {})[DISK] = said
    if most is None and not _in_force(rw):
        yield
        return
    _require_project(container)
    before = project.quota(rw)
    if most is not None and most < before.used:
        raise BadInput(
            doing="limiting",
            target=f"the disk of container {record.name}",
            why=f"{most >> 10} KiB are below the {before.used >> 10} KiB that it uses",
            hint="delete files in it first",
        )
    project.limit(rw, most or 0)
    try:
        yield
    except BaseException:
        project.limit(rw, before.limit)
        raise


def _in_force(rw: Path) -> bool:
    return bool(project.of(rw)) and not project.problem(rw)


def usage(container: Container) -> dict[str, int | None] | None:
    """Bytes that its writable layer takes and may take: {"used", "limit"}. None where nobody counts them."""
    with contextlib.suppress(RuntimeFault):
        if project.of(container.paths.rw):
            found = project.quota(container.paths.rw)
            return {"used": found.used, "limit": found.limit or None}
    return None


def release(home: Path) -> None:
    """Have the file system forget the limit of the container whose directory HOME is about to be deleted."""
    rw = home / "rw"
    try:
        if rw.is_dir() and project.of(rw):
            project.limit(rw, 0)
    except RuntimeFault as fault:
        log.info("%s", fault)  # quotas are off by now: there is no limit


def facts(container: Container) -> dict[str, int] | None:
    """For the host that it shall move to; None: no limit."""
    most = limit_of(container.record.spec)
    if most is None:
        return None
    return {"limit": most, "used": (usage(container) or {}).get("used") or 0}
