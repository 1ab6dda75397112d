"""From a container's spec to the monitor's launch plan: plain, resolved, checked data.

Whatever needs a library, a look at the host or a decision is done here, in the CLI's process; the monitor and the
stages (runtime/stage) only carry the plan out. So everything that a spec asks for in vain is refused before anything
exists.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime import cgroups, mountinfo, syscalls
from runtime.container.record import Container
from runtime.network.config import NetworkConfig
from runtime.security import compiled, rlimits
from runtime.security import paths as secured
from runtime.security.capabilities import Capabilities
from runtime.spec import Mount, Process, Spec, resolve
from runtime.stage.mounts import inside

SAME = "same"
"""Instead of a job's filter program; see runtime/monitor/jobs.py."""
NULL = "null"
"""Key of the external mount that masks files."""

EMPTY = "empty"
"""Key of the external mount that masks directories."""

_ETC = ("resolv.conf", "hosts", "hostname")


def build(
    container: Container,
    *,
    layers: list[str],
    cgroup: cgroups.Cgroup,
    ended: list[str],
    abandoned: list[str],
    environment: dict[str, str],
    restore: dict[str, Any] | None,
    tmpfs: Mapping[str, int],
) -> dict[str, Any]:
    """The plan. LAYERS: directories, uppermost first. ENDED: the command that the monitor becomes at the end.

    TMPFS: descriptors that the monitor inherits, by key, of those that are there already.
    """
    record, paths = container.record, container.paths
    spec = Spec(record.spec)
    config = NetworkConfig.from_dict(record.network)
    externals, mounts = _mounts(container, spec, cgroup)
    for key, fd in tmpfs.items():
        externals[key]["fd"] = fd
    plan: dict[str, Any] = {
        "id": record.id,
        "run_dir": str(paths.run),
        "status_path": str(paths.status),
        "log_path": str(paths.log),
        "log_max_bytes": record.log["max_bytes"],
        "log_files": record.log["files"],
        "jobs_dir": str(paths.jobs),
        "userns": {"base": record.id_base, "size": record.id_size} if record.id_base else None,
        "cgroup_procs": cgroup.enter_paths(),
        "cgroup_mounts": _cgroup_mounts(cgroup),
        "clone_flags": _clone_flags(spec, config),
        "layers": layers,
        "rw_dir": str(paths.rw),
        "externals": externals,
        "mask": NULL,
        "mask_directory": EMPTY,
        "mounts": mounts,
        "readonly_paths": list(spec.readonly_paths),
        "masked_paths": list(spec.masked_paths),
        "root_readonly": spec.root_readonly,
        "hostname": spec.hostname,
        "domainname": spec.domainname,
        "ipc_sysctls": _ipc_sysctls(spec),
        "hooks": {kind: list(entries) for kind, entries in spec.hooks.items()},
        "hook_state": oci_state(container, "creating", 0),
        "stdin": record.stdin,
        "process": {**process_plan(spec.process), **_filter(container, spec)},
        "oom_files": _oom_files(cgroup),
        "oom_before": cgroup.oom_kills(),
        "ended": ended,
        "abandoned": abandoned,
        "environment": environment,
    }
    if restore is not None:
        plan["restore"] = restore
    return plan


_CLONE = {
    "pid": syscalls.CLONE_NEWPID,
    "mount": syscalls.CLONE_NEWNS,
    "uts": syscalls.CLONE_NEWUTS,
    "ipc": syscalls.CLONE_NEWIPC,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}


def _clone_flags(spec: Spec, config: NetworkConfig) -> int:
    """The namespaces to make, but the user namespace, which comes before all others."""
    flags = 0 if config.kind == "host" else syscalls.CLONE_NEWNET
    for kind, flag in _CLONE.items():
        if spec.namespace(kind) is not None:
            flags |= flag
    return flags


def oci_state(container: Container, status: str, pid: int) -> dict[str, Any]:
    """The state that OCI hooks get (runtime-spec, runtime.md "State")."""
    return {
        "ociVersion": container.record.spec.get("ociVersion", "1.0.2"),
        "id": container.record.id,
        "status": status,
        "pid": pid,
        "bundle": str(container.paths.home),
        "annotations": container.record.spec.get("annotations", {}),
    }


def process_plan(process: Process) -> dict[str, Any]:
    """What stage/execute.py needs to become the process, but the filter."""
    capabilities = Capabilities.from_spec(process.capabilities)
    limits, _ = rlimits.applicable(rlimits.from_spec(process.rlimits), clamp=False)
    env = dict(entry.split("=", 1) for entry in process.env)
    return {
        "args": list(process.args),
        "env": env,
        "cwd": process.cwd,
        "uid": process.uid,
        "gid": process.gid,
        "groups": list(process.additional_gids),
        "umask": process.umask if process.umask is not None else 0o022,
        "terminal": process.terminal,
        "console_size": process.console_size,
        "capabilities": capabilities.plan(),
        "no_new_privileges": process.no_new_privileges,
        "rlimits": [limit.plan() for limit in limits],
        "oom_score_adj": process.oom_score_adj,
    }


def _filter(container: Container, spec: Spec) -> dict[str, Any]:
    if not spec.seccomp:
        return {"seccomp": None, "seccomp_flags": 0}
    program, flags = compiled.program(spec.seccomp, container.host.root / "filters")
    return {"seccomp": base64.b64encode(program).decode(), "seccomp_flags": flags}


def job_process(
    container: Container,
    *,
    args: tuple[str, ...],
    env: tuple[str, ...],
    cwd: str,
    user: str,
    terminal: bool,
    console_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The plan of a job: as the container's own process, but for what is asked for differently.

    Its filter is the container's, which the monitor has (SAME).
    """
    spec = Spec(container.record.spec)
    process = dict(container.record.spec["process"])
    own = spec.process
    root = f"/proc/{container.status().init_pid}/root"
    if user:
        who = resolve(user, root)
        process["user"] = {
            "uid": who.uid,
            "gid": who.gid,
            "additionalGids": list(who.additional_gids),
        }
        if who.uid != 0 and own.uid == 0:
            process["capabilities"] = {"bounding": own.capabilities.get("bounding", [])}
    process["args"] = list(args)
    names = {entry.partition("=")[0] for entry in env}
    kept = [entry for entry in own.env if entry.partition("=")[0] not in names]
    process["env"] = [*kept, *env]
    if terminal and not any(entry.startswith("TERM=") for entry in process["env"]):
        process["env"].append("TERM=xterm")
    process["cwd"] = cwd or own.cwd
    process["terminal"] = terminal
    process.pop("consoleSize", None)
    if terminal and console_size:
        process["consoleSize"] = {"height": console_size[0], "width": console_size[1]}
    process.pop("oomScoreAdj", None)
    return {**process_plan(Process.from_dict(process)), "seccomp": SAME}


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A tmpfs that travels with the container: its key among the outside mounts, and where it is in the container."""

    key: str
    point: str
    flags: int
    data: str

    def directory(self, container: Container) -> str:
        """Where the running container's is, without what is mounted on it: in the monitor's mount namespace."""
        monitor = container.status().values["monitor_pid"]
        return f"/proc/{monitor}/root{container.paths.run}/m/{self.key}"


def tmpfs_of(container: Container) -> list[Tmpfs]:
    """Those that the container's spec asks for."""
    externals, mounts = _mounts(container, Spec(container.record.spec), None)
    return [
        Tmpfs(key, mount["destination"], externals[key]["flags"], externals[key]["data"])
        for mount in mounts
        if (key := mount["external"]) and externals.get(key, {}).get("kind") == "tmpfs"
    ]


def mount_point(init: int, destination: str) -> str:
    """Where pid 1 found the place for a mount: a link in the image (/var/run) leads elsewhere."""
    root = f"/proc/{init}/root"
    return inside(root, destination).removeprefix(root) or "/"


def external_points(container: Container) -> list[tuple[str, str]]:
    """Mount points that CRIU must take as given, and their keys: for `criu dump --external mnt[POINT]:KEY`."""
    spec = Spec(container.record.spec)
    init = container.status().init_pid
    pairs = []
    points = {mount.point for mount in mountinfo.mounts(init)}
    _, mounts = _mounts(container, spec, None)
    for mount in mounts:
        if mount["external"]:
            pairs.append((mount_point(init, mount["destination"]), mount["external"]))
    for path in spec.masked_paths:
        if path in points:
            pairs.append((path, NULL if _is_masked_file(init, path) else EMPTY))
    return [(point, key) for point, key in pairs if point in points]


def _is_masked_file(init: int, path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(f"/proc/{init}/root{path}").st_mode)
    except OSError:
        return False


# ---- mounts


def _mounts(
    container: Container, spec: Spec, cgroup: cgroups.Cgroup | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The outside mounts by key, and all mounts in the order in which pid 1 makes them."""
    externals: dict[str, Any] = {
        NULL: _node(NULL, 1, 3, 0o666, container),
        EMPTY: {"kind": "empty", "names": []},
    }
    mounts: list[dict[str, Any]] = []
    for number, mount in enumerate(spec.mounts):
        if mount.type == "bind":
            key = f"v{number}"
            externals[key] = _bind(mount, container)
            mounts.append(_entry(mount.destination, external=key, propagation=mount.propagation))
        elif mount.type in ("cgroup", "cgroup2"):
            outside, entries = _cgroup_entries(mount)
            externals |= outside
            mounts += entries
        elif mount.type == "tmpfs":
            key = f"t{number}"
            externals[key] = {
                "kind": "tmpfs",
                "flags": mount.flags,
                "data": mount.data,
                "id_base": container.record.id_base,
            }
            mounts.append(_entry(mount.destination, external=key, propagation=mount.propagation))
        else:
            mounts.append(_file_system(mount))
    for device in [*secured.default_devices(), *spec.devices]:
        key = "d" + device["path"].replace("/", "-")
        mode = device.get("fileMode", 0o666)
        major, minor = device.get("major", 0), device.get("minor", 0)
        externals[key] = _node(key, major, minor, mode, container, device)
        mounts.append(_entry(device["path"], external=key))
    taken = {mount.destination for mount in spec.mounts}
    for name in _ETC:
        source = container.paths.etc / name
        if f"/etc/{name}" not in taken and source.exists():
            key = f"e-{name}"
            externals[key] = {
                "kind": "bind",
                "source": str(source),
                # As they are on the strictest host: no other could take them away after a move.
                "flags": syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC,
                "idmap": bool(container.record.id_base),
                "recursive": False,
            }
            mounts.append(_entry(f"/etc/{name}", external=key))
    return externals, mounts


def _entry(destination: str, *, external: str, propagation: int = 0) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": "",
        "flags": 0,
        "data": "",
        "external": external,
        "propagation": propagation,
    }


def _file_system(mount: Mount) -> dict[str, Any]:
    return {
        "destination": mount.destination,
        "type": mount.type,
        "source": mount.source or mount.type,
        "flags": mount.flags,
        "data": mount.data,
        "external": None,
        "propagation": mount.propagation,
    }


def _bind(mount: Mount, container: Container) -> dict[str, Any]:
    return {
        "kind": "bind",
        "source": mount.source,
        "flags": mount.flags & ~(syscalls.MS_BIND | syscalls.MS_REC),
        "idmap": bool(container.record.id_base),
        "recursive": bool(mount.flags & syscalls.MS_REC),
    }


def _node(
    key: str,
    major: int,
    minor: int,
    mode: int,
    container: Container,
    device: dict[str, Any] | None = None,
) -> dict[str, Any]:
    device = device or {}
    return {
        "kind": "node",
        "type": device.get("type", "c").replace("u", "c"),
        "major": major,
        "minor": minor,
        "mode": mode,
        "uid": container.record.id_base + device.get("uid", 0),
        "gid": container.record.id_base + device.get("gid", 0),
    }


# ---- cgroups as the container sees them


def _cgroup_mounts(cgroup: cgroups.Cgroup) -> list[dict[str, Any]]:
    """File systems that the monitor mounts from inside the container's cgroup namespace, by key."""
    mounts = []
    for label in cgroup.paths():
        if label == "v2":
            mounts.append({"key": "cg-v2", "type": "cgroup2", "data": ""})
        else:
            controllers = label.partition(":")[2]
            mounts.append(
                {
                    "key": "cg-" + controllers.replace(",", "-"),
                    "type": "cgroup",
                    "data": controllers,
                }
            )
    return mounts


def _cgroup_entries(mount: Mount) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The outside mounts and the mounts of /sys/fs/cgroup: one tree, or a directory of several."""
    labels = [tree.label for tree in cgroups.detect().usable]
    if labels == ["v2"]:
        return {}, [_entry(mount.destination, external="cg-v2")]
    names = {
        "unified" if label == "v2" else label.partition(":")[2]: (
            "cg-v2" if label == "v2" else "cg-" + label.partition(":")[2].replace(",", "-")
        )
        for label in labels
    }
    entries = [_entry(mount.destination, external="cg-root")]
    entries += [_entry(f"{mount.destination}/{name}", external=key) for name, key in names.items()]
    return {"cg-root": {"kind": "empty", "names": list(names)}}, entries


def _oom_files(cgroup: cgroups.Cgroup) -> list[str]:
    files = []
    for label, path in cgroup.paths().items():
        if label == "v2":
            files.append(f"{path}/memory.events")
        elif "memory" in label:
            files.append(f"{path}/memory.oom_control")
    return files


# ---- kernel settings


def network_sysctls(spec: dict[str, Any]) -> dict[str, str]:
    """The `net.` settings of the container's own network namespace."""
    values = secured.default_sysctls(own_network=True)
    values.update(spec.get("linux", {}).get("sysctl", {}))
    return {key: value for key, value in values.items() if key.startswith("net.")}


def _ipc_sysctls(spec: Spec) -> dict[str, str]:
    values = secured.sysctls_from_spec(spec.sysctl, own_network=True, own_ipc=True)
    return {
        secured.sysctl_path(key).removeprefix("/proc/sys/"): value
        for key, value in values.items()
        if not key.startswith("net.")
    }
