"""Is a config.json one that ckpt honours, all of it? (OCI runtime-spec 1.x.)

The shape of every field is described here, except where another part of the runtime owns the field
and its meaning (capabilities, limits, kernel settings, cgroups): that one is asked. The seccomp
profile is compiled when a container is created, which checks it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from runtime.cgroups.resources import Resources
from runtime.errors import RuntimeFault, Unsupported
from runtime.security import rlimits
from runtime.security.capabilities import Capabilities
from runtime.security.paths import sysctls_from_spec

from . import mount_options
from .checks import (
    Check,
    Json,
    Problem,
    Report,
    anything,
    brief,
    flag,
    items,
    one_of,
    record,
    table,
    text,
    whole,
)
from .model import HOOKS, NAMESPACES

_ID = whole(0, 2**32 - 2)
_ANY_TEXT = text(empty=True)
_ABSOLUTE = text(pattern=r"/.*", what="an absolute path", most=4095)
_PLACE = text(
    pattern=r"/(?!(?:.*/)?\.\.(?:/|\Z)).*", what='an absolute path without ".."', most=4095
)
_VERSION = re.compile(r"1\.\d{1,4}\.\d{1,4}(?:[-+][0-9A-Za-z.+-]{1,64})?")

_OWN = "a container is dumped and moved with its own"
_LEAKING = ("shared", "rshared", "unbindable", "runbindable")
_MAY_JOIN = frozenset({"network", "ipc", "uts"})


def validate(spec: dict[str, Any]) -> list[Problem]:
    """Everything that is wrong with a spec, by JSON path; empty if ckpt honours all of it."""
    problems: list[Problem] = []
    _SPEC(spec, "", problems.append)
    if not problems:
        _together(spec, problems.append)
    return problems


def _owner(read: Callable[[Any], object], prefix: str = "") -> Check:
    """Ask the part of the runtime that owns the field."""

    def check(value: Json, path: str, report: Report) -> None:
        try:
            read(value)
        except RuntimeFault as fault:
            # Some faults name the field by its whole path, some by what is below it, some a value.
            target, why = fault.target.replace(" ", "."), fault.why
            if prefix:
                target = prefix + target
            elif not target.startswith(path):
                target, why = path, f"{fault.target}: {why}"
            report(Problem(target, why, isinstance(fault, Unsupported)))

    return check


def _version(value: Json, path: str, report: Report) -> None:
    if not isinstance(value, str):
        report(Problem(path, f"has to be a string, not {brief(value)}"))
    elif not _VERSION.fullmatch(value):
        report(Problem(path, f"{brief(value)} isn't a version 1.x.y", unsupported=True))


def _environment(value: Json, path: str, report: Report) -> None:
    text()(value, path, report)
    if isinstance(value, str) and (value.startswith("=") or "=" not in value):
        report(Problem(path, f"{brief(value)} isn't NAME=VALUE"))


def _mount(value: Json, path: str, report: Report) -> None:
    found: list[Problem] = []
    _MOUNT(value, path, found.append)
    for problem in found:
        report(problem)
    if found:
        return
    options = value.get("options") or []
    kind = mount_options.mount_type(value.get("type") or "", options)
    if kind not in mount_options.TYPES:
        known = ", ".join(sorted(mount_options.TYPES))
        report(Problem(f"{path}.type", f"{kind or 'none'} isn't one of {known}", True))
        return
    if kind == "bind" and not (value.get("source") or "").startswith("/"):
        report(Problem(f"{path}.source", "a bind mount's source has to be an absolute path"))
    try:
        mount_options.parse(kind, options)
    except ValueError as error:
        report(Problem(f"{path}.options", str(error), unsupported=True))


_USER = record(
    {
        "uid": _ID,
        "gid": _ID,
        "umask": whole(0, 0o777),
        "additionalGids": items(_ID),
    },
    unsupported={"username": "it is Windows's"},
)
_PROCESS = record(
    {
        "terminal": flag,
        "consoleSize": record(
            {"height": whole(0, 65535), "width": whole(0, 65535)}, required=("height", "width")
        ),
        "cwd": _ABSOLUTE,
        "env": items(_environment),
        "args": items(_ANY_TEXT, least=1),
        "rlimits": _owner(rlimits.from_spec),
        "capabilities": _owner(Capabilities.from_spec),
        "noNewPrivileges": flag,
        "oomScoreAdj": whole(-1000, 1000),
        "user": _USER,
    },
    required=("args", "cwd"),
    unsupported={
        "apparmorProfile": "ckpt has no AppArmor support",
        "selinuxLabel": "ckpt has no SELinux support",
        "scheduler": "set it inside the container",
        "ioPriority": "set it inside the container, or use linux.resources.blockIO",
        "execCPUAffinity": "use linux.resources.cpu.cpus",
        "commandLine": "it is Windows's",
    },
)
_MOUNT = record(
    {
        "destination": _PLACE,
        "type": _ANY_TEXT,
        "source": _ANY_TEXT,
        "options": items(text()),
    },
    required=("destination",),
    unsupported={
        "uidMappings": "volumes are mapped like the container's own ids",
        "gidMappings": "volumes are mapped like the container's own ids",
    },
)
_HOOK = record(
    {
        "path": _ABSOLUTE,
        "args": items(_ANY_TEXT),
        "env": items(_environment),
        "timeout": whole(1, 86400),
    },
    required=("path",),
)
_MAPPING = record(
    {"containerID": _ID, "hostID": _ID, "size": whole(1, 2**32 - 1)},
    required=("containerID", "hostID", "size"),
)
_DEVICE = record(
    {
        "path": _PLACE,
        "type": one_of({"c", "u", "b", "p"}),
        "major": whole(0, 4095),
        "minor": whole(0, 2**20 - 1),
        "fileMode": whole(0, 0o7777),
        "uid": _ID,
        "gid": _ID,
    },
    required=("path", "type"),
)
_LINUX = record(
    {
        "namespaces": items(
            record(
                {
                    "type": one_of(
                        NAMESPACES, unsupported={"time": "CRIU needs it for the clocks it restores"}
                    ),
                    "path": _ABSOLUTE,
                },
                required=("type",),
            )
        ),
        "uidMappings": items(_MAPPING, most=340),
        "gidMappings": items(_MAPPING, most=340),
        "devices": items(_DEVICE),
        "cgroupsPath": text(
            pattern=r"(?!(?:.*/)?\.\.(?:/|\Z)).+", what='a path without ".."', most=1024
        ),
        "resources": _owner(Resources.from_oci, "linux.resources."),
        "seccomp": table(anything),
        "sysctl": table(_ANY_TEXT),
        "maskedPaths": items(_PLACE),
        "readonlyPaths": items(_PLACE),
        "rootfsPropagation": one_of(
            {"private", "rprivate", "slave", "rslave"},
            unsupported=dict.fromkeys(_LEAKING, "mounts that leak to the host can't move"),
        ),
    },
    unsupported={
        "intelRdt": "cache and bandwidth classes are the host's",
        "mountLabel": "ckpt has no SELinux support",
        "personality": "CRIU doesn't restore it",
        "timeOffsets": "CRIU needs the time namespace for the clocks it restores",
        "netDevices": "a host's device can't move with a container",
        "memoryPolicy": "nodes differ between hosts",
    },
)
_SPEC = record(
    {
        "ociVersion": _version,
        "process": _PROCESS,
        "root": record({"path": text(most=4095), "readonly": flag}, required=("path",)),
        "hostname": text(
            pattern=r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?",
            what="a host name",
            most=64,
            empty=True,
        ),
        "domainname": text(most=64, empty=True),
        "mounts": items(_mount, most=1000),
        "hooks": record({kind: items(_HOOK, most=100) for kind in HOOKS}),
        "annotations": table(_ANY_TEXT),
        "linux": _LINUX,
    },
    required=("ociVersion", "process", "root"),
    unsupported={
        "solaris": "containers are Linux's",
        "windows": "containers are Linux's",
        "vm": "containers are processes",
        "zos": "containers are Linux's",
        "freebsd": "containers are Linux's",
    },
)


def _together(spec: dict[str, Any], report: Report) -> None:
    """What is right by itself and wrong beside something else."""
    linux = spec.get("linux") or {}
    kinds: dict[str, str] = {}
    for number, namespace in enumerate(linux.get("namespaces") or []):
        kind, path = namespace["type"], f"linux.namespaces[{number}]"
        if kind in kinds:
            report(Problem(path, f"{kind} is there twice"))
        kinds[kind] = namespace.get("path") or ""
        if kinds[kind] and kind not in _MAY_JOIN:
            report(Problem(f"{path}.path", f"{_OWN} {kind} namespace", unsupported=True))
    for kind in ("pid", "mount"):
        if kind not in kinds:
            why = f"has no {kind} namespace: {_OWN}"
            report(Problem("linux.namespaces", why, unsupported=True))
    _names(spec, kinds, report)
    _mappings(linux, kinds, report)
    _devices(linux, report)
    sysctl = linux.get("sysctl")
    if sysctl:
        own_network, own_ipc = "network" in kinds, "ipc" in kinds
        _owner(lambda v: sysctls_from_spec(v, own_network=own_network, own_ipc=own_ipc))(
            sysctl, "linux.sysctl", report
        )


def _names(spec: dict[str, Any], kinds: dict[str, str], report: Report) -> None:
    for field in ("hostname", "domainname"):
        if spec.get(field) and "uts" not in kinds:
            report(Problem(field, "would change the host's: there is no uts namespace"))


def _mappings(linux: dict[str, Any], kinds: dict[str, str], report: Report) -> None:
    for field in ("uidMappings", "gidMappings"):
        mappings = linux.get(field) or []
        path = f"linux.{field}"
        if mappings and "user" not in kinds:
            report(Problem(path, "there is no user namespace"))
        for side in ("containerID", "hostID"):
            ranges = sorted((m[side], m["size"]) for m in mappings)
            for (low, size), (high, _) in zip(ranges, ranges[1:], strict=False):
                if low + size > high:
                    report(Problem(path, f"ranges of {side} overlap at {high}"))
            if ranges and ranges[-1][0] + ranges[-1][1] > 2**32 - 1:
                report(Problem(path, f"a range of {side} ends beyond the largest id"))


def _devices(linux: dict[str, Any], report: Report) -> None:
    seen = set()
    for number, device in enumerate(linux.get("devices") or []):
        path = f"linux.devices[{number}]"
        if device["path"] in seen:
            report(Problem(f"{path}.path", f"{device['path']} is there twice"))
        seen.add(device["path"])
        if device["type"] != "p":
            for field in ("major", "minor"):
                if device.get(field) is None:
                    report(Problem(f"{path}.{field}", "is missing"))
