"""The root directory's file system, idmapped mounts and overlayfs on it; space and memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckpt.ops import disk as limits
from ckpt.ops.doctor.row import Probe, Row, in_child
from ckpt.ops.host import Host
from ckpt.ops.places import closed_above, file_system
from ckpt.ops.preflight import available_memory
from runtime import syscalls
from runtime.container import idrange
from runtime.stage.mounts import assemble
from runtime.stage.namespaces import user_namespace

_LITTLE_DISK = 1 << 30
_NO_DISK = 64 << 20
_LITTLE_MEMORY = 512 << 20
_NO_MEMORY = 64 << 20


def probes(host: Host) -> dict[str, Probe]:
    return {
        "directories": lambda: directories(host),
        "disk": lambda: disk(host),
        "disk limits": lambda: disk_limits(host),
        "idmapped mounts": lambda: idmapped(host),
        "overlayfs": lambda: overlay(host),
        "memory": memory,
    }


def nearest(path: Path) -> Path:
    """PATH, or the closest directory above it that exists."""
    while not path.is_dir():
        path = path.parent
    return path


def directories(host: Host) -> Row:
    missing = [str(p) for p in (host.paths.root, host.paths.run) if not p.is_dir()]
    closed = closed_above(host.paths)
    if closed is not None and os.geteuid() == 0:
        return Row(
            "directories",
            f"{host.paths.root}: {closed} is closed to other users",
            "bad",
            "a container's root is one of them and can't reach its files: only --userns host works",
            f"chmod o+x {closed}, or choose another place with --root or CKPT_ROOT",
        )
    if not missing:
        return Row("directories", f"{host.paths.root}, {host.paths.run}")
    if not os.access(nearest(host.paths.root), os.W_OK):
        fix = "choose another with --root or CKPT_ROOT"
        return Row(
            "directories", f"{host.paths.root}: read-only", "bad", "nothing can be kept", fix
        )
    # The first `ckpt run` makes them as well.
    return Row("directories", f"not made yet: {', '.join(missing)}", repair="directories")


def disk(host: Host) -> Row:
    place = nearest(host.paths.root)
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    kind = file_system(place)
    value = f"{host.paths.root}: {kind}, {free / 2**30:.1f} GiB free"
    fix = "make room, or choose another place with --root or CKPT_ROOT"
    if free < _NO_DISK or (found.f_files and not found.f_favail):
        return Row("disk", value, "bad", "containers and checkpoints can't be written", fix)
    if free < _LITTLE_DISK:
        return Row("disk", value, "warn", "checkpoints of larger containers won't fit", fix)
    if kind in ("tmpfs", "ramfs"):
        consequence = "containers and checkpoints are gone after a reboot, and use up memory"
        return Row("disk", value, "warn", consequence, "choose another place with --root")
    return Row("disk", value)


def disk_limits(host: Host) -> Row:
    place = nearest(host.paths.containers)
    why, hint = limits.why_not(place)
    if not why:
        return Row("disk limits", f"yes, by project quotas of {file_system(place)}")
    return Row("disk limits", f"no: {why}", "warn", "--disk is refused", hint)


@contextmanager
def _scratch(host: Host) -> Iterator[Path]:
    """A directory on the root's file system: what holds there holds for containers."""
    folder = Path(tempfile.mkdtemp(prefix=".ckpt-doctor-", dir=nearest(host.paths.root)))
    try:
        yield folder
    finally:
        # Mounts were made in a child's mount namespace only, and went with it.
        shutil.rmtree(folder)


def idmapped(host: Host) -> Row:
    with _scratch(host) as folder:
        why = in_child(lambda: _idmap(folder))
    if not why:
        return Row("idmapped mounts", f"yes, on {file_system(nearest(host.paths.root))}")
    return Row(
        "idmapped mounts",
        f"no: {why}",
        "bad",
        "layers can't be shown to a container's user namespace: only --userns host works",
        "put the root on ext4, xfs, btrfs or (Linux 6.3) tmpfs, with --root or CKPT_ROOT",
    )


def _idmap(folder: Path) -> None:
    userns = user_namespace(idrange.FIRST, idrange.SIZE)
    tree = syscalls.open_tree(str(folder))
    syscalls.mount_setattr(tree, syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns)


def overlay(host: Host) -> Row:
    """A container's root as `ckpt run` makes it, and a file written in it by the container's root."""
    with _scratch(host) as folder:
        for name in ("layer", "run", "rw/upper", "rw/work"):
            (folder / name).mkdir(parents=True)
        (folder / "layer/file").write_text("from the layer\n")
        for name in ("rw", "rw/upper", "rw/work"):
            os.chown(folder / name, idrange.FIRST, idrange.FIRST)
        why = in_child(lambda: _overlay(folder))
    if not why:
        return Row("overlayfs", "yes, over idmapped layers")
    return Row(
        "overlayfs",
        f"no: {why}",
        "bad",
        "containers get no root file system",
        "put the root on a file system that isn't an overlay itself (ext4, xfs, btrfs) with --root"
        " or CKPT_ROOT; overlayfs over idmapped layers needs Linux 5.19",
    )


def _overlay(folder: Path) -> None:
    userns = user_namespace(idrange.FIRST, idrange.SIZE)
    plan = {
        "run_dir": str(folder / "run"),
        "rw_dir": str(folder / "rw"),
        "layers": [str(folder / "layer")],
        "externals": {},
        "cgroup_mounts": [],
    }
    root = Path(assemble(plan, userns))
    owner = (root / "file").stat().st_uid
    if owner != idrange.FIRST:
        raise ValueError(f"a layer's file belongs to {owner} instead of {idrange.FIRST}")
    # From inside: a container's processes needn't be able to walk to it from the host's root.
    os.chdir(root)
    syscalls.setns(userns, syscalls.CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # A copy up, and a new file: overlayfs falls back to read-only where it can't do either.
    with open("file", "a") as file:
        file.write("and the container\n")
    Path("new").write_text("from the container\n")


def memory() -> Row:
    free = available_memory()
    value = f"{free / 2**30:.1f} GiB available"
    fix = "end something, or add memory"
    if free < _NO_MEMORY:
        return Row("memory", value, "bad", "nothing more can run here", fix)
    if free < _LITTLE_MEMORY:
        return Row("memory", value, "warn", "larger containers can't be restored here", fix)
    return Row("memory", value)
