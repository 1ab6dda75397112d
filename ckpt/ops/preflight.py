"""Preflight: every reason to refuse a migration is found before anything is touched.

The source's half looks at the container and its processes; its facts go to the destination, which looks at itself.
A finding is {"what", "why", "hint"}; none means go.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckpt.ops import dialect, disk, hooks, places, volumes
from ckpt.ops.environment import environment
from ckpt.ops.host import Host
from ckpt.ops.memory_use import memory_use
from ckpt.ops.processor import cpu_features, lacking
from ckpt.ops.trees import tmpfs_bytes
from runtime.container import record as records
from runtime.container.record import Container, check_name
from runtime.criu.obstacles import obstacles
from runtime.errors import RuntimeFault
from runtime.mountinfo import parse
from runtime.network import plan as addresses
from runtime.network.config import NetworkConfig
from runtime.tracking.uffd import userfaultfd
from runtime.tree import tree_digest
from runtime.veil import veil

Finding = dict[str, str]
_SPARE = 256 << 20
"""Bytes of memory that a destination should have left over."""
_SPARE_DISK = 64 << 20


def finding(what: str, why: str, hint: str = "") -> Finding:
    return {"what": what, "why": why, "hint": hint}


# ---- the source


def source_facts(host: Host, container: Container, pids: list[int]) -> dict[str, Any]:
    """What the destination must know to judge."""
    record = container.record
    named = volumes.named(host.paths, record.spec)
    use = memory_use(pids)
    return {
        "name": record.name,
        "container": record.id,
        "host": os.uname().nodename,
        "arch": platform.machine(),
        "kernel": platform.release(),
        "criu": host.criu.text,
        "environment": environment(host),
        "cpu_features": list(cpu_features()),
        "kernel_files": kernel_files(_mountinfo(pids)),
        "layers": {digest: host.layers.info(digest).data_bytes for digest in record.layers},
        "network": record.network,
        "memory": use.total + tmpfs_bytes(container),
        "forked": use.forked,
        "files": tree_size(container.paths.upper)
        + sum(tree_size(Path(volume.source)) for volume in named),
        "disk": disk.facts(container),
        "volumes": [{"name": volume.name, "writable": volume.writable} for volume in named],
        "user_namespace": bool(record.id_base),
        "hooks": hooks.programs(container),
        "binds": [
            {"source": source, "directory": os.path.isdir(source)}
            for source, _ in volumes.binds(host.paths, record.spec)
        ],
    }


def _mountinfo(pids: list[int]) -> str:
    for pid in pids:
        try:
            return Path(f"/proc/{pid}/mountinfo").read_text()
        except OSError:
            continue
    return ""


def checks(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What preflight compared, a row each, from both hosts' facts; what speaks against it are the findings."""
    missing = set(there.get("missing_layers", []))
    need = sum(size for digest, size in here["layers"].items() if digest in missing)

    def mib(count: float) -> str:
        return f"{count / (1 << 20):.0f} MiB"

    rows = [
        ("ckpt", dialect.software(), there.get("software", "?")),
        ("kernel", here["kernel"], there.get("kernel", "?")),
        ("CRIU", here["criu"], there.get("criu", "?")),
        ("processor", here["arch"], there.get("arch", "?")),
        ("memory", f"{mib(here['memory'])} in use", f"{mib(there.get('memory_free', 0))} free"),
        ("files", mib(here["files"] + need), f"{mib(there.get('disk_free', 0))} free"),
        ("layers", str(len(here["layers"])), f"{len(missing)} missing, {mib(need)}"),
        ("volumes", _names_of(here["volumes"]), "free"),
        ("network", str(here["network"].get("kind")), "free"),
        ("name", here["name"], "free"),
    ]
    if limit := here.get("disk"):
        ours = f"{mib(limit['used'])} of {mib(limit['limit'])}"
        rows.append(("disk limit", ours, there.get("disk_limit") or "can be kept"))
    return [{"what": what, "here": str(ours), "there": str(theirs)} for what, ours, theirs in rows]


def _names_of(entries: list[dict[str, Any]]) -> str:
    return ", ".join(entry["name"] for entry in entries) or "none"


def source_findings(host: Host, container: Container, pids: list[int]) -> list[Finding]:
    """What in the processes themselves cannot be dumped, and what of theirs others need here."""
    found = [finding(one.what, one.why, one.hint) for one in obstacles(pids)]
    for volume in volumes.named(host.paths, container.record.spec):
        others = volumes.sharers(
            host.containers(), volume.name, writable=volume.writable, but=container.record.id
        )
        if others:
            found.append(
                finding(
                    f"volume {volume.name}",
                    f"container {', '.join(others)} uses it here, too",
                    "a volume moves with its only container; ckpt rm the other, or give each its own",
                )
            )
    if container.record.network.get("kind") == "host":
        found += _established(pids)
    return found


def _established(pids: list[int]) -> list[Finding]:
    for pid in pids[:1]:
        for name in ("tcp", "tcp6"):
            try:
                lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
            except OSError:
                continue
            inodes = _sockets(pids)
            if any(line.split()[3] == "01" and line.split()[9] in inodes for line in lines):
                return [
                    finding(
                        "network host",
                        "established connections cannot move without their address",
                        "use a network of the container's own: --network l2=BRIDGE",
                    )
                ]
    return []


def _sockets(pids: list[int]) -> set[str]:
    inodes = set()
    for pid in pids:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        except OSError:
            continue
    return inodes


def tree_size(directory: Path) -> int:
    """Bytes on disk below DIRECTORY."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue
    return total


def kernel_files(mountinfo: str) -> list[str]:
    """Paths of /proc and /sys that a container covers with mounts: CRIU makes these again, so they must be there.

    Which of them a kernel has depends on its configuration and on the machine's devices. MOUNTINFO: the container's,
    as in proc_pid_mountinfo(5); what its spec would cover may not have been there when it was made.
    """
    points = {mount.point for mount in parse(mountinfo)}
    places = ("/proc/", "/sys/")
    return sorted(p for p in points if p.startswith(places) and not p.startswith("/sys/fs/cgroup"))


# ---- the destination


def destination_findings(host: Host, facts: Mapping[str, Any]) -> list[Finding]:
    """Why what FACTS describe cannot come here."""
    found: list[Finding] = []
    try:
        criu = host.criu
    except RuntimeFault as fault:
        return [finding("CRIU", fault.why, fault.hint)]
    if facts["arch"] != platform.machine():
        found.append(finding("processor", f"{facts['arch']} there, {platform.machine()} here"))
    absent = lacking(facts["cpu_features"])
    if absent:
        found.append(
            finding(
                "processor",
                f"this CPU lacks {', '.join(absent[:8])}",
                "programs may have chosen instructions that don't exist here",
            )
        )
    theirs = tuple(int(part) for part in str(facts["criu"]).split(".") if part.isdigit())
    if theirs[:2] > criu.version[:2]:
        found.append(
            finding("CRIU", f"{facts['criu']} there, {criu.text} here", "ckpt doctor --fix here")
        )
    if absent := [path for path in facts.get("kernel_files", []) if not os.path.exists(path)]:
        found.append(
            finding(
                "kernel",
                f"{', '.join(absent[:4])} is not there on this host, and the container has a mount on it",
                "a kernel with the same configuration, or a spec without it in maskedPaths and readonlyPaths",
            )
        )
    found += _names(host, facts)
    found += [
        finding("network", why)
        for why in addresses.conflicts(
            NetworkConfig.from_dict(facts["network"]),
            root_dir=host.paths.root,
            container_id=facts["container"],
        )
    ]
    free = available_memory()
    if free < facts["memory"] + _SPARE:
        found.append(
            finding(
                "memory", f"{facts['memory'] >> 20} MiB are needed, {free >> 20} MiB are available"
            )
        )
    need = facts["files"] + sum(int(facts["layers"][digest]) for digest in _missing(host, facts))
    if disk_free(host) < need + _SPARE_DISK:
        found.append(
            finding(
                "disk",
                f"{need >> 20} MiB of files are coming, {disk_free(host) >> 20} MiB are free "
                f"in {host.paths.root}",
                "ckpt checkpoints prune there makes room",
            )
        )
    if facts.get("disk") and any(why := disk.why_not(host.paths.containers)):
        found.append(finding("disk limit", *why))
    if facts["user_namespace"]:
        sources = [bind["source"] for bind in facts["binds"]]
        for one in places.problems(host.paths, sources):
            found.append(finding(one.what, one.why, one.hint))
    for program in facts["hooks"]:
        if not os.access(program, os.X_OK):
            found.append(
                finding("hook", f"{program} is no program here", "install it there as well")
            )
    return found + _volumes(host, facts)


def _volumes(host: Host, facts: Mapping[str, Any]) -> list[Finding]:
    found = []
    for bind in facts["binds"]:
        source, kind = bind["source"], "directory" if bind["directory"] else "file"
        if not os.path.exists(source):
            why = f"{source} does not exist here"
        elif os.path.isdir(source) != bind["directory"]:
            why = f"{source} is no {kind} here"
        else:
            continue
        hint = (
            f"a {kind} of the host doesn't move along: put it there, with the same content, "
            "or use a named volume, which does (-v NAME:/path)"
        )
        found.append(finding("volume", why, hint))
    for entry in facts["volumes"]:
        name = check_name(entry["name"], "volume name")
        others = volumes.sharers(host.containers(), name, writable=entry["writable"])
        if others:
            found.append(
                finding(
                    f"volume {name}",
                    f"container {', '.join(others)} uses one of that name there",
                    "give one of them another name",
                )
            )
    return found


def volumes_here(host: Host, facts: Mapping[str, Any]) -> dict[str, str]:
    """The digests of volumes that are coming although there are some of those names here, with content."""
    found = {}
    for entry in facts["volumes"]:
        path = host.paths.volumes / check_name(entry["name"], "volume name")
        if not volumes.is_empty(path):
            found[path.name] = tree_digest(str(path))
    return found


def clashing_volumes(host: Host, container: Container, theirs: Mapping[str, Any]) -> list[Finding]:
    """What speaks against the move in THEIRS, the destination's volumes_here()."""
    return [
        finding(
            f"volume {volume.name}",
            "the destination has one of that name with other content",
            "move it away there (ROOT/volumes), or give this one another name",
        )
        for volume in volumes.named(host.paths, container.record.spec)
        if volume.name in theirs and theirs[volume.name] != tree_digest(volume.source)
    ]


def _names(host: Host, facts: Mapping[str, Any]) -> list[Finding]:
    try:
        records.check_name(facts["name"])
        records.check_free(host.paths, facts["name"])
    except RuntimeFault as fault:
        return [finding("name", fault.why, fault.hint)]
    return []


def destination_facts(host: Host, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the source must know to go on: what is missing here."""
    try:
        criu = host.criu.text
    except RuntimeFault as fault:
        criu = fault.why
    return {
        "missing_layers": _missing(host, facts),
        "volumes": volumes_here(host, facts),
        "software": dialect.software(),
        "environment": environment(host),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "criu": criu,
        "pipe_max": pipe_max(),
        "not_warm": why_not_warm_here(),
        "memory_free": available_memory(),
        "disk_free": disk_free(host),
        "disk_limit": disk.why_not(host.paths.containers)[0],
    }


def _missing(host: Host, facts: Mapping[str, Any]) -> list[str]:
    return [digest for digest in facts["layers"] if not host.layers.has(digest)]


def disk_free(host: Host) -> int:
    """Bytes that root may still write below ckpt's root."""
    disk = os.statvfs(host.paths.root)
    return disk.f_bavail * disk.f_frsize


def available_memory() -> int:
    """MemAvailable, in bytes."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def pipe_max() -> int:
    return int(Path("/proc/sys/fs/pipe-max-size").read_text())


def why_not_warm_there(host: Host) -> str:
    """Why the memory of a container of this host can't be copied while it runs; "" if it can."""
    try:
        veil.require(host.paths.programs)
    except RuntimeFault as fault:
        return fault.why
    return ""


def why_not_warm_here() -> str:
    """Why a pager can't give pages to tasks that are restored on this host; "" if it can."""
    try:
        os.close(userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return f"the destination has no userfaultfd: {error.strerror}"
    return ""
