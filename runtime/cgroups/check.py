"""Can this host keep these limits? Asked before anything of a container is made."""

from __future__ import annotations

import errno

from runtime.cgroups import limits
from runtime.cgroups.hugepages import page_sizes
from runtime.cgroups.layout import Layout, Tree
from runtime.cgroups.limits import Problem
from runtime.cgroups.parse import format_cpuset, parse_cpuset
from runtime.cgroups.plan import Change, Setting
from runtime.cgroups.resources import Resources


def check(layout: Layout, resources: Resources) -> list[Problem]:
    """Every limit in `resources` that this host can't keep; empty: all of them can be kept.

    Looks only: nothing is created. A file that only a child cgroup would show (and none is there
    yet to look at) is taken to be there; `Cgroup.apply` says so if it isn't.
    """
    steps, problems = limits.plan(layout, Change.of(resources, Resources()))
    samples: dict[Tree, str | None] = {}
    for tree, setting in steps:
        if tree not in samples:
            samples[tree] = _sample(layout, tree)
        problems += _of_setting(layout, tree, samples[tree], setting)
    problems += _devices(layout, resources)
    problems += _cpus(layout, resources)
    problems += _huge_pages(resources)
    problems += _disks(layout, resources)
    return list(dict.fromkeys(problems))


def require(layout: Layout, resources: Resources) -> None:
    """Raise Unsupported with every problem that `check` finds."""
    problems = check(layout, resources)
    if problems:
        raise limits.unsupported("checking the limits for", "this host", problems)


def _sample(layout: Layout, tree: Tree) -> str | None:
    """A child cgroup to look at: the root doesn't have all files."""
    ours = tree.path(layout.default_parent)
    if layout.fs.exists(ours):
        return ours
    try:
        children = layout.fs.subdirs(tree.mount)
    except OSError:
        return None
    return children[0] if children else None


def _of_setting(layout: Layout, tree: Tree, sample: str | None, setting: Setting) -> list[Problem]:
    wrong = limits.only_v1(setting, tree)
    if wrong is not None:
        return [wrong]
    if sample is None or not _shows(layout, tree, sample, setting.controller):
        return []
    if any(layout.fs.exists(f"{sample}/{file}") for file in setting.files):
        return []
    return [limits.missing_file(setting)]


def _shows(layout: Layout, tree: Tree, sample: str, controller: str) -> bool:
    """Whether the files of `controller` would be in `sample` at all."""
    if tree.version == 1:
        return True
    try:
        return controller in layout.fs.read(f"{sample}/cgroup.controllers").split()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise


def _devices(layout: Layout, resources: Resources) -> list[Problem]:
    if resources.devices is None or layout.tree_of("devices") or layout.unified:
        return []
    return [Problem("devices", "this host has neither the devices controller nor a v2 tree")]


def _cpus(layout: Layout, resources: Resources) -> list[Problem]:
    problems: list[Problem] = []
    tree = layout.tree_of("cpuset")
    if tree is None:
        return problems
    for name, wish in (("cpus", resources.cpu.cpus), ("mems", resources.cpu.mems)):
        if wish is None:
            continue
        have = _effective(layout, tree, name)
        missing = parse_cpuset(wish) - have if have else frozenset()
        if missing:
            what = "CPU" if name == "cpus" else "memory node"
            why = f"{what} {format_cpuset(missing)} isn't here (there are {format_cpuset(have)})"
            problems.append(Problem(f"cpu.{name}", why))
    return problems


def _effective(layout: Layout, tree: Tree, name: str) -> frozenset[int]:
    files = {
        1: (f"cpuset.effective_{name}", f"cpuset.{name}"),
        2: (f"cpuset.{name}.effective",),
    }[tree.version]
    for file in files:
        try:
            text = layout.fs.read(f"{tree.mount}/{file}").strip()
        except FileNotFoundError:
            continue
        if text:
            return parse_cpuset(text)
    return frozenset()


def _huge_pages(resources: Resources) -> list[Problem]:
    have = page_sizes()
    return [
        Problem(
            f"hugepageLimits.{limit.page_size}",
            "this kernel has no huge pages of that size",
            f"it has {', '.join(have)}" if have else "",
        )
        for limit in resources.huge_pages
        if limit.page_size not in have
    ]


def _disks(layout: Layout, resources: Resources) -> list[Problem]:
    io = resources.block_io
    problems: list[Problem] = []
    groups = (io.weight_device, io.read_bps, io.write_bps, io.read_iops, io.write_iops)
    for number in sorted({(d.major, d.minor) for group in groups for d in group}):
        device = f"{number[0]}:{number[1]}"
        entry = f"/sys/dev/block/{device}"
        if not layout.fs.exists(entry):
            problems.append(Problem(f"blockIO device {device}", "there is no such block device"))
        elif layout.fs.exists(f"{entry}/partition"):
            why = "it is a partition: only whole disks can be limited"
            problems.append(Problem(f"blockIO device {device}", why))
    return problems
