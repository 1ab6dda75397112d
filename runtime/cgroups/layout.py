"""Where the cgroup hierarchies of this host are and which controller lives in which.

Three layouts occur:

v2      one tree, all controllers in it (stock Debian)
v1      a tree per controller or pair of controllers
hybrid  v1 trees, and beside them a v2 tree with no or few controllers

A controller is in one tree at a time, so "which file holds the memory limit" has one answer per
host, and everything else in this package asks the layout for it.

Where our cgroups go: below the **root** of each hierarchy, in `/ckpt`, or in `/ckpt.slice` where
systemd is pid 1. Not below the cgroup that the caller happens to be in: that one belongs to a
session or a supervisor which would count, limit or kill our containers with its own, and which a
container must outlive. systemd doesn't touch a cgroup at the root that it doesn't know by name; and
it can't take a controller away from the root while our slice passes it on to its children (the
kernel answers EBUSY). We change nothing at the root but adding controllers to
cgroup.subtree_control, which is additive.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from runtime.cgroups.files import CgroupFs
from runtime.mountinfo import Mount, parse

# Those that ckpt sets limits in or counts by. Others (net_cls, perf_event, rdma, named ones such as
# systemd's) are left alone: our processes stay where they were in them.
KNOWN = frozenset(
    {"cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "io", "devices", "freezer", "hugetlb"}
)


@dataclass(frozen=True, slots=True)
class Tree:
    """One mounted hierarchy. `root` is the part of it that the mount shows ("/": all)."""

    version: int
    mount: str
    controllers: frozenset[str]
    root: str = "/"
    writable: bool = True

    def path(self, cgroup: str) -> str:
        """The directory of the cgroup with the absolute path `cgroup`."""
        return self.mount + cgroup if cgroup != "/" else self.mount

    @property
    def label(self) -> str:
        if self.version == 2:
            return "v2"
        return "v1:" + ",".join(sorted(self.controllers))


@dataclass(frozen=True, slots=True)
class Layout:
    """All hierarchies that ckpt can use, and what it can't."""

    kind: str  # "v1" | "v2" | "hybrid" | "none"
    trees: tuple[Tree, ...]
    systemd: bool = False
    fs: CgroupFs = field(default_factory=CgroupFs, compare=False, repr=False)

    @property
    def usable(self) -> tuple[Tree, ...]:
        return tuple(tree for tree in self.trees if tree.writable)

    @property
    def unified(self) -> Tree | None:
        """The v2 tree, if there is a usable one."""
        return next((tree for tree in self.usable if tree.version == 2), None)

    def tree_of(self, controller: str) -> Tree | None:
        """The usable tree that has `controller`; "io" and "blkio" name the same one."""
        names = {"io", "blkio"} if controller in ("io", "blkio") else {controller}
        return next((tree for tree in self.usable if names & tree.controllers), None)

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset().union(*(tree.controllers for tree in self.usable))

    @property
    def default_parent(self) -> str:
        """The cgroup below which ckpt puts its own, in every tree."""
        return "/ckpt.slice" if self.systemd else "/ckpt"


def detect(
    *,
    mountinfo: str = "/proc/self/mountinfo",
    pid1_comm: str = "/proc/1/comm",
    prefix: str = "",
    fs: CgroupFs | None = None,
) -> Layout:
    """Find the cgroup hierarchies (proc_pid_mountinfo(5), cgroups(7)).

    `prefix` goes before every mount point, for a tree that stands in for the kernel's.
    """
    fs = fs or CgroupFs()
    found: dict[tuple[int, frozenset[str]], Tree] = {}
    for mount in parse(fs.read(mountinfo)):
        tree = _tree(mount, prefix, fs)
        if tree is None:
            continue
        key = (tree.version, tree.controllers if tree.version == 1 else frozenset())
        # A hierarchy may be mounted many times; take a mount that is writable and shows all of it.
        if key not in found or _rank(tree) > _rank(found[key]):
            found[key] = tree
    trees = tuple(sorted(found.values(), key=lambda tree: (tree.version, tree.mount)))
    versions = {tree.version for tree in trees}
    kind = {frozenset({1}): "v1", frozenset({2}): "v2", frozenset({1, 2}): "hybrid"}.get(
        frozenset(versions), "none"
    )
    return Layout(kind=kind, trees=trees, systemd=_is_systemd(pid1_comm, fs), fs=fs)


def _rank(tree: Tree) -> tuple[bool, bool]:
    return tree.writable, tree.root == "/"


def _is_systemd(pid1_comm: str, fs: CgroupFs) -> bool:
    try:
        return fs.read(pid1_comm).strip() == "systemd"
    except OSError:
        return False


def _tree(mount: Mount, prefix: str, fs: CgroupFs) -> Tree | None:
    if mount.kind not in ("cgroup", "cgroup2"):
        return None
    point = prefix + mount.point
    # Both the mount and the superblock can be read-only.
    writable = "rw" in mount.options and "rw" in mount.super_options
    # A bind mount whose file can't be reached any more (mounted over) isn't usable.
    writable = writable and fs.exists(os.path.join(point, "cgroup.procs"))
    if mount.kind == "cgroup":
        controllers = mount.super_options & KNOWN
        return Tree(1, point, controllers, mount.root, writable) if controllers else None
    try:
        available = fs.read(os.path.join(point, "cgroup.controllers")).split()
    except OSError:
        available = []
    return Tree(2, point, frozenset(available) & KNOWN, mount.root, writable)
