"""The container's file systems: assembled by the monitor as host root, completed by pid 1 in its own namespaces.

Two halves, because each can do what the other cannot:

1. `assemble`, in the monitor's private mount namespace: layers idmapped into the container's id range, overlayfs over
   them, and every mount that comes from outside (volumes, tmpfs, device nodes, DNS files) made ready at `m/<key>` with
   its final flags and idmap. Only host root may idmap, and CRIU, which the monitor starts for a restore, finds the
   outside mounts there under the same keys: `--external mnt[KEY]:m/KEY`.
2. `enter_root`, in pid 1: file systems that belong to its namespaces (proc, devpts, mqueue, sysfs), the outside
   mounts bound to their places, masks, and the root pivoted. CRIU recreates this half by itself.

An idmapped upper directory makes overlayfs read-only, so the upper directory has shifted owners on disk, and only the
layers are idmapped.
"""

from __future__ import annotations

import os
import stat

from runtime import syscalls as sc
from runtime import tmpfs

TYPE_CHECKING = False  # importing typing costs the monitor half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# relatime unless the container's spec says otherwise, whatever the host's own file system has: in a user namespace
# nobody can change it any more, so a container from a host with noatime couldn't be restored on one without.
_HOSTS_OWN = sc.MOUNT_ATTR__ATIME | sc.MOUNT_ATTR_NODIRATIME


def assemble(plan: dict[str, Any], userns: int | None) -> str:
    """Make the first half in a new mount namespace of the caller; returns the root's mount point."""
    where = os.path.join(plan["run_dir"], "m")
    sc.unshare(sc.CLONE_NEWNS)
    # rslave, not private: a later unmount at the host must not be held up by this namespace.
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_SLAVE)
    os.makedirs(where, exist_ok=True)
    # A tmpfs of our own holds the mount points: nothing of this is ever on disk.
    sc.mount("tmpfs", where, "tmpfs", 0, "mode=711")
    sc.mount(None, where, None, sc.MS_PRIVATE)
    for key, external in plan["externals"].items():
        _external(external, os.path.join(where, key), userns)
    _cgroup_file_systems(plan, where)
    return _overlay(plan, where, userns)


def _overlay(plan: dict[str, Any], where: str, userns: int | None) -> str:
    lowers = []
    for number, layer in enumerate(plan["layers"]):
        target = os.path.join(where, f"l{number}")
        os.mkdir(target)
        _attach(layer, target, sc.MS_RDONLY, userns, recursive=False)
        lowers.append(f"l{number}")
    root = os.path.join(where, "rootfs")
    os.mkdir(root)
    # Overlay's options are limited to a page: relative names, from here.
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(where)
    try:
        os.mkdir("rw")
        sc.mount(plan["rw_dir"], "rw", None, sc.MS_BIND)
        data = f"lowerdir={':'.join(lowers)},upperdir=rw/upper,workdir=rw/work"
        sc.mount("overlay", root, "overlay", sc.MS_RELATIME, data)
    finally:
        os.fchdir(before)
        os.close(before)
    sc.mount(None, root, None, sc.MS_PRIVATE)
    return root


def _attach(source: str, target: str, flags: int, userns: int | None, *, recursive: bool) -> None:
    tree = sc.open_tree(
        source,
        sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | (sc.AT_RECURSIVE if recursive else 0),
    )
    try:
        attributes = sc.mount_attributes(flags)
        if userns is not None:
            attributes |= sc.MOUNT_ATTR_IDMAP
        try:
            sc.mount_setattr(
                tree, attributes, attr_clr=_HOSTS_OWN, userns_fd=userns or 0, recursive=recursive
            )
        except PermissionError:  # we are in a user namespace ourselves
            sc.mount_setattr(tree, attributes, userns_fd=userns or 0, recursive=recursive)
        sc.move_mount(tree, target)
    finally:
        os.close(tree)
    sc.mount(None, target, None, sc.MS_PRIVATE | (sc.MS_REC if recursive else 0))


def _cgroup_file_systems(plan: dict[str, Any], where: str) -> None:
    """Mount cgroupfs as seen from the container's own cgroup: by a child that is in it, into our mount namespace."""
    if not plan["cgroup_mounts"]:
        return
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            join_cgroups(plan["cgroup_procs"])
            sc.unshare(sc.CLONE_NEWCGROUP)
            for entry in plan["cgroup_mounts"]:
                target = os.path.join(where, entry["key"])
                os.mkdir(target)
                flags = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
                sc.mount("cgroup", target, entry["type"], flags, entry["data"] or None)
                sc.mount(None, target, None, flags | sc.MS_BIND | sc.MS_REMOUNT | sc.MS_RDONLY)
                sc.mount(None, target, None, sc.MS_PRIVATE)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise OSError(5, "cannot mount the cgroup file systems", where)


def join_cgroups(procs_files: list[str]) -> None:
    """Move the caller into cgroups, named by their cgroup.procs files."""
    for path in procs_files:
        with open(path, "w") as file:
            file.write("0")


def _external(external: dict[str, Any], target: str, userns: int | None) -> None:
    if external["kind"] == "node":
        kind = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}[external["type"]]
        os.mknod(target, kind | 0o600, os.makedev(external["major"], external["minor"]))
        os.chown(target, external["uid"], external["gid"])
        os.chmod(target, external["mode"])
        return
    if external["kind"] == "tmpfs":
        os.mkdir(target)
        fd = external.get("fd", -1)
        if fd < 0:
            fd = tmpfs.make(external["flags"], external["data"], id_base=external["id_base"])
        tmpfs.attach(fd, target, external["flags"])
        return
    if external["kind"] == "empty":
        for path in (target, *(os.path.join(target, name) for name in external["names"])):
            os.mkdir(path)
            os.chmod(path, 0o755)
        # Read-only whoever is root in the container; what is mounted on NAMES keeps its own flags.
        _attach(target, target, sc.MS_RDONLY, None, recursive=False)
        return
    source = external["source"]
    if stat.S_ISDIR(os.stat(source).st_mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    _attach(
        source,
        target,
        external["flags"],
        userns if external["idmap"] else None,
        recursive=external["recursive"],
    )


def _make_mount_point(path: str, directory: bool) -> None:
    if directory:
        os.makedirs(path, exist_ok=True)
    elif not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def inside(root: str, path: str) -> str:
    """PATH of the container as a path here; symbolic links on the way are followed inside ROOT only.

    Without this a link in an image (/run -> /etc) could make us mount over a directory of the host.
    """
    done, todo, links = root, [part for part in path.split("/") if part], 0
    while todo:
        part = todo.pop(0)
        if part in (".", ""):
            continue
        if part == "..":
            done = root if done == root else os.path.dirname(done)
            continue
        candidate = os.path.join(done, part)
        if os.path.islink(candidate):
            links += 1
            if links > 40:
                raise OSError(40, "too many symbolic links", path)
            link = os.readlink(candidate)
            if link.startswith("/"):
                done = root
            todo = [step for step in link.split("/") if step] + todo
        else:
            done = candidate
    return done


def enter_root(plan: dict[str, Any], root: str, *, before_pivot: Callable[[], None]) -> None:
    """Second half, in pid 1's new mount namespace: complete the tree and pivot into it.

    BEFORE_PIVOT is called with everything mounted and the host's files still in reach.
    """
    where = os.path.join(plan["run_dir"], "m")
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    # CRIU wants the root to be a mount of this namespace's own.
    sc.mount(root, root, None, sc.MS_BIND | sc.MS_REC)
    for entry in plan["mounts"]:
        _mount(entry, where, root)
    _device_links(root)
    for path in plan["readonly_paths"]:
        target = inside(root, path)
        if os.path.exists(target):
            sc.mount(target, target, None, sc.MS_BIND | sc.MS_REC)
            _remount(target, sc.MS_RDONLY)
    for path in plan["masked_paths"]:
        target = inside(root, path)
        if os.path.isdir(target):
            # Not a tmpfs of its own: CRIU runs tar for each one, in the frozen window.
            sc.mount(os.path.join(where, plan["mask_directory"]), target, None, sc.MS_BIND)
        elif os.path.exists(target):
            sc.mount(os.path.join(where, plan["mask"]), target, None, sc.MS_BIND)
    before_pivot()
    os.chdir(root)
    sc.pivot_root(".", ".")
    # The old root lies over the new one now; detached, it takes m/ and everything of the host with it.
    sc.umount(".", sc.MNT_DETACH)
    os.chdir("/")
    if plan["root_readonly"]:
        _remount("/", sc.MS_RDONLY)


def _remount(target: str, flags: int) -> None:
    """Add FLAGS to a mount; those that its source has are locked in a user namespace and must be repeated."""
    held = os.statvfs(target).f_flag
    for bit, flag in (
        (os.ST_NOSUID, sc.MS_NOSUID),
        (os.ST_NODEV, sc.MS_NODEV),
        (os.ST_NOEXEC, sc.MS_NOEXEC),
    ):
        if held & bit:
            flags |= flag
    sc.mount(None, target, None, sc.MS_BIND | sc.MS_REMOUNT | flags)


def _mount(entry: dict[str, Any], where: str, root: str) -> None:
    target = inside(root, entry["destination"])
    if entry["external"]:
        source = os.path.join(where, entry["external"])
        _make_mount_point(target, os.path.isdir(source))
        sc.mount(source, target, None, sc.MS_BIND | sc.MS_REC)
    else:
        _make_mount_point(target, True)
        sc.mount(entry["source"], target, entry["type"], entry["flags"], entry["data"] or None)
    if entry["propagation"]:
        sc.mount(None, target, None, entry["propagation"])


def _device_links(root: str) -> None:
    dev = inside(root, "/dev")
    for name, link in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ):
        path = os.path.join(dev, name)
        if not os.path.lexists(path):
            os.symlink(link, path)
