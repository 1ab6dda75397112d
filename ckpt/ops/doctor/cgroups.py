"""Cgroups: the layout, which controllers there are, and whether ours can be made."""

from __future__ import annotations

import os

from ckpt.ops.doctor.row import Level, Probe, Row, reason
from ckpt.ops.host import Host
from runtime.cgroups import Layout, Resources, check

# Every controller that ckpt sets limits in, and what its lack means.
_CONTROLLERS = (
    ("memory", "no memory limits, OOM kills aren't reported"),
    ("cpu", "no CPU quota or shares"),
    ("cpuset", "no choice of CPUs"),
    ("pids", "no limit on processes"),
    ("io", "no I/O weight or bandwidth"),
)
_MOUNT = "mount -t cgroup2 none /sys/fs/cgroup"


def probes(host: Host) -> dict[str, Probe]:
    return {
        "cgroups": lambda: layout_of(host.layout),
        "cgroup controllers": lambda: controllers(host.layout),
        "CPU burst": lambda: burst(host.layout),
        "freezer": lambda: freezer(host.layout),
    }


def layout_of(layout: Layout) -> Row:
    """A child cgroup is made in each tree, and removed."""
    if not layout.usable:
        return Row("cgroups", f"{layout.kind}: none can be written", "bad", _NOTHING, _MOUNT)
    refused = [
        f"{tree.label}: {why}" for tree in layout.usable if (why := _try(layout, tree.mount))
    ]
    value = f"{layout.kind}, {len(layout.usable)} writable {_plural(len(layout.usable))}"
    if layout.systemd:
        value += ", beside systemd's"
    if refused:
        fix = "remount them writable, or run outside of the container that ckpt is in"
        return Row("cgroups", value, "bad", f"{_NOTHING}: {'; '.join(refused)}", fix)
    return Row("cgroups", value)


_NOTHING = "containers can't be made"


def _plural(count: int) -> str:
    return "tree" if count == 1 else "trees"


def _try(layout: Layout, mount: str) -> str:
    """Why no child can be made in the tree at MOUNT; "" if it can."""
    probe = f"{mount}/ckpt-doctor-{os.getpid()}"
    try:
        layout.fs.mkdir(probe)
        layout.fs.rmdir(probe)
    except OSError as error:
        return reason(error)
    return ""


def controllers(layout: Layout) -> Row:
    there = [name for name, _ in _CONTROLLERS if layout.tree_of(name)]
    missing = [(name, why) for name, why in _CONTROLLERS if not layout.tree_of(name)]
    # The v2 tree limits devices by a program that is attached to it, without a controller.
    if layout.tree_of("devices") or layout.unified:
        there.append("devices")
    else:
        missing.append(("devices", "containers could open any device"))
    value = " ".join(there) or "none"
    if not missing:
        return Row("cgroup controllers", value)
    value += f"; without {', '.join(name for name, _ in missing)}"
    level: Level = "bad" if any(name == "devices" for name, _ in missing) else "warn"
    fix = "enable them in the kernel's configuration, or take cgroup_disable= from its command line"
    return Row(
        "cgroup controllers", value, level, "; ".join(f"{name}: {w}" for name, w in missing), fix
    )


def burst(layout: Layout) -> Row:
    wish = Resources.from_oci({"cpu": {"quota": 100000, "period": 100000, "burst": 1000}})
    problems = check(layout, wish)
    if not problems:
        return Row("CPU burst", "yes")
    consequence = "specs that ask for CPU burst are refused"
    return Row("CPU burst", "no", "warn", consequence, "Linux 5.14 with CONFIG_CFS_BANDWIDTH")


def freezer(layout: Layout) -> Row:
    """cgroup.freeze is in every v2 cgroup but the root; v1 has a controller."""
    if layout.tree_of("freezer"):
        return Row("freezer", "v1")
    unified = layout.unified
    if unified is not None and _has_freeze(layout, unified.mount):
        return Row("freezer", "v2")
    return Row(
        "freezer",
        "none",
        "bad",
        "containers can't be frozen for a dump",
        "mount the freezer controller, or use cgroup v2 on Linux 5.2 or newer",
    )


def _has_freeze(layout: Layout, mount: str) -> bool:
    probe = f"{mount}/ckpt-doctor-{os.getpid()}"
    layout.fs.mkdir(probe)
    try:
        return layout.fs.exists(f"{probe}/cgroup.freeze")
    finally:
        layout.fs.rmdir(probe)
