"""From a wish to writes: which controller's plan goes to which tree, in which order, with undo."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, replace

from runtime.cgroups import v1, v2
from runtime.cgroups.devices import DevicePolicy
from runtime.cgroups.layout import Layout, Tree
from runtime.cgroups.plan import Change, Setting
from runtime.cgroups.resources import Resources
from runtime.errors import BadInput, Conflict, NotPermitted, RuntimeFault, SystemFault, Unsupported

log = logging.getLogger(__name__)

_CONTROLLERS = ("cpuset", "cpu", "memory", "pids", "io", "hugetlb", "devices")


@dataclass(frozen=True, slots=True)
class Problem:
    """A limit that this host can't keep: the spec's field, why, and what would help."""

    field: str
    why: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.field}: {self.why}" + (f" ({self.hint})" if self.hint else "")


def plan(layout: Layout, change: Change) -> tuple[list[tuple[Tree, Setting]], list[Problem]]:
    """The writes for `change`, each with its tree; and what has no tree to be written in."""
    steps: list[tuple[Tree, Setting]] = []
    problems: list[Problem] = []
    for controller in _CONTROLLERS:
        tree = layout.tree_of(controller)
        for setting in _settings(controller, tree, change):
            if tree is None:
                problems.append(_no_controller(layout, setting))
            else:
                steps.append((tree, setting))
    for setting in v2.plan_unified(change):
        tree = layout.unified
        if tree is None:
            problems.append(Problem(setting.field, "this host has no cgroup v2 tree"))
        elif setting.controller not in tree.controllers | {"cgroup"}:
            problems.append(_no_controller(layout, setting, only=tree))
        else:
            steps.append((tree, setting))
    return steps, problems


def _settings(controller: str, tree: Tree | None, change: Change) -> list[Setting]:
    if tree is None and controller == "devices":
        return []  # v2 has a program instead of files; see `apply` and `check`
    if tree is not None and tree.version == 1:
        return v1.PLANS["blkio" if controller == "io" else controller](change)
    return v2.PLANS[controller](change) if controller in v2.PLANS else []


def _no_controller(layout: Layout, setting: Setting, only: Tree | None = None) -> Problem:
    name = setting.controller
    unusable = [t for t in layout.trees if not t.writable and name in t.controllers]
    if unusable:
        return Problem(setting.field, f"{unusable[0].mount} can't be written")
    where = "the v2 tree" if only else "any cgroup tree of this host"
    hint = "cgroup_enable=memory on the kernel's command line" if name == "memory" else ""
    return Problem(setting.field, f"the {name} controller isn't in {where}", hint)


def apply(layout: Layout, cgroup: str, change: Change) -> None:
    """Write `change` into the cgroup at `cgroup`. On a failure what was written is put back.

    Raises Unsupported, BadInput, Conflict (memory in use), NotPermitted, SystemFault.
    """
    steps, problems = plan(layout, change)
    if problems:
        raise unsupported("limiting", cgroup, problems)
    done: list[tuple[str, str]] = []
    try:
        for tree, setting in steps:
            _write(layout, tree.path(cgroup), setting, done)
        _apply_device_program(layout, cgroup, change)
    except RuntimeFault:
        for path, text in reversed(done):
            try:
                layout.fs.write(path, text)
            except OSError as error:
                log.warning("putting back %r in %s: %s", text, path, error)
        raise


def _apply_device_program(layout: Layout, cgroup: str, change: Change) -> None:
    if change.wish.devices is None or layout.tree_of("devices") is not None:
        return
    tree = layout.unified
    if tree is None:
        problem = Problem("devices", "this host has neither the devices controller nor a v2 tree")
        raise unsupported("limiting", cgroup, [problem])
    try:
        layout.fs.attach_devices(tree.path(cgroup), DevicePolicy.of(change.wish.devices))
    except OSError as error:
        why = f"the device program was refused: {error.strerror}"
        hint = "needs CAP_BPF or CAP_SYS_ADMIN, and CONFIG_CGROUP_BPF"
        raise unsupported("limiting", cgroup, [Problem("devices", why, hint)]) from error


def _write(layout: Layout, directory: str, setting: Setting, done: list[tuple[str, str]]) -> None:
    fs = layout.fs
    file, text = next(
        ((f, t) for f, t in setting.choices if fs.exists(f"{directory}/{f}")), ("", "")
    )
    if not file:
        raise unsupported("limiting", directory, [missing_file(setting)])
    path = f"{directory}/{file}"
    before = _undo_text(layout, path, setting)
    log.debug("cgroup: %s > %s", text, path)
    try:
        fs.write(path, text)
    except OSError as error:
        raise _refused(error, path, setting, text) from error
    if before is not None:
        done.append((path, before))


def _undo_text(layout: Layout, path: str, setting: Setting) -> str | None:
    """What to write to get back to before; None where nothing helps."""
    try:
        text = layout.fs.read(path).strip()
    except OSError:
        return None  # write-only (devices.allow): the caller removes the cgroup or retries
    if setting.neutral is None:
        first = text.partition("\n")[0]
        # memory.oom_control reads as a table and is written as its first number.
        return first.removeprefix("oom_kill_disable ").removeprefix("default ")
    device = setting.neutral.partition(" ")[0]
    lines = (line for line in text.splitlines() if line.partition(" ")[0] == device)
    return next(lines, setting.neutral)


def _refused(error: OSError, path: str, setting: Setting, text: str) -> RuntimeFault:
    doing, target = f"setting {setting.field} to", text
    if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
        return NotPermitted(doing=doing, target=target, why=f"{path}: {error.strerror}")
    if error.errno == errno.EBUSY:
        return Conflict(
            doing=doing,
            target=target,
            why="more than that is in use, and the kernel couldn't free it",
            hint="a higher limit, or stop something in the container",
            retry=True,
        )
    if error.errno in (errno.ENODEV, errno.ENXIO):
        why = "there is no such block device (partitions can't be limited, their disk can)"
        return BadInput(doing=doing, target=target, why=why)
    if error.errno in (errno.EINVAL, errno.ERANGE):
        why = f"the kernel refuses the value in {path}"
        return BadInput(doing=doing, target=target, why=why)
    if error.errno in (errno.EOPNOTSUPP, errno.ENOENT):
        return Unsupported(doing=doing, target=target, why=f"{path}: {error.strerror}")
    return SystemFault(doing=doing, target=target, why=f"{path}: {error.strerror}")


_ONLY_V1 = {
    "memory.swappiness": "cgroup v2 has no swappiness per cgroup",
    "memory.disableOOMKiller": "cgroup v2 can't switch the OOM killer off",
}
_HINTS = {
    "memory.swap": "swapaccount=1 on the kernel's command line",
    "cpu.burst": "needs Linux 5.14",
    "cpu.idle": "needs Linux 5.15",
    "blockIO.weight": "needs the BFQ scheduler or CONFIG_BLK_CGROUP_IOCOST",
    "blockIO.weightDevice": "needs the BFQ scheduler or CONFIG_BLK_CGROUP_IOCOST",
}


def missing_file(setting: Setting) -> Problem:
    """The problem with a setting none of whose files are there."""
    field = setting.field
    if field in _ONLY_V1:
        return Problem(field, _ONLY_V1[field])
    why = f"this kernel has no {' or '.join(setting.files)}"
    return Problem(field, why, _HINTS.get(field, ""))


def only_v1(setting: Setting, tree: Tree) -> Problem | None:
    """The problem with a setting that only v1 has, in a v2 tree."""
    if tree.version == 2 and setting.field in _ONLY_V1:
        return missing_file(setting)
    return None


def unsupported(doing: str, target: str, problems: list[Problem]) -> Unsupported:
    """All problems in one fault."""
    hints = "; ".join(dict.fromkeys(p.hint for p in problems if p.hint))
    why = "; ".join(f"{p.field}: {p.why}" for p in problems)
    return Unsupported(doing=doing, target=target, why=why, hint=hints)


_FIELDS = {
    "memory": "memory",
    "cpu": "cpu",
    "cpuset": "cpu",
    "pids": "pids",
    "io": "block_io",
    "blkio": "block_io",
    "hugetlb": "huge_pages",
}


def read(layout: Layout, cgroup: str) -> Resources:
    """What the kernel limits in `cgroup` now, without devices (v2 can't be asked)."""
    found = Resources()
    for tree in layout.usable:
        readers = (v1 if tree.version == 1 else v2).READS
        for controller in sorted(tree.controllers & readers.keys()):
            value = readers[controller](layout.fs, tree.path(cgroup))
            # cpu and cpuset, which v1 may have in different trees, are one in the spec.
            if controller == "cpu":
                value = replace(value, cpus=found.cpu.cpus, mems=found.cpu.mems)
            elif controller == "cpuset":
                value = replace(found.cpu, cpus=value.cpus, mems=value.mems)
            found = replace(found, **{_FIELDS[controller]: value})
    return found
