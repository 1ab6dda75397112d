"""The spec that a command line's flags mean."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from runtime.errors import BadInput
from runtime.security import paths as secured
from runtime.security import rlimits
from runtime.security.capabilities import Capabilities
from runtime.security.default_filter import default_profile

from . import defaults, users
from .load import first_problem

NETWORK = "org.ckpt.network"  # annotation: JSON of the network's configuration
RESTART = "org.ckpt.restart"  # annotation: no, on-failure[:N], always
DISK = "org.ckpt.disk"  # annotation: bytes that the writable layer may take, -1: no limit

_PERIOD = 100_000  # microseconds of one CPU quota period, the kernel's default
_RESTART = re.compile(r"no|always|on-failure(?::[1-9]\d{0,5})?")
_VARIABLE = re.compile(r"[^=\0]+=[^\0]*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DeviceRate:
    """Bytes (or operations) per second of the block device major:minor."""

    major: int
    minor: int
    rate: int


@dataclass(frozen=True, slots=True)
class Options:
    """What the flags of `run` and `create` say; sizes in bytes, already numbers.

    `rootfs`: the root directory, for `root.path` and to look up user names in. `user`: "1000",
    "1000:100", "name", "name:group". `tmpfs`: "/path[:size=64m,mode=1777]". `volumes`:
    "/source:/destination[:ro]". `memory_swap`: memory and swap together, -1 for no limit, as in
    OCI. `disk`: what the writable layer may take, -1 for no limit. `cpu_burst`: microseconds.
    `rlimits`: "nofile=1024:4096". `network`: goes into an annotation; its "kind" "host" means no
    network namespace. `seccomp`: a profile, or what is said.
    """

    args: tuple[str, ...] = ()
    rootfs: str = ""
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    umask: int | None = None
    hostname: str = ""
    domainname: str = ""
    tmpfs: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    tty: bool = False
    read_only: bool = False
    memory: int | None = None
    memory_reservation: int | None = None
    memory_swap: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpu_burst: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids: int | None = None
    disk: int | None = None
    io_weight: int | None = None
    io_read_bps: tuple[DeviceRate, ...] = ()
    io_write_bps: tuple[DeviceRate, ...] = ()
    io_read_iops: tuple[DeviceRate, ...] = ()
    io_write_iops: tuple[DeviceRate, ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    sysctl: Mapping[str, str] = field(default_factory=dict)
    rlimits: tuple[str, ...] = ()
    oom_score_adj: int | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    restart: str = "no"
    user_namespace: bool = True
    no_new_privileges: bool = True
    seccomp: Literal["default", "unconfined"] | Mapping[str, Any] = "default"
    annotations: Mapping[str, str] = field(default_factory=dict)


def from_flags(options: Options) -> dict[str, Any]:
    """A valid spec, of plain JSON values. Raises BadInput, Unsupported, naming what is wrong.

    With `user_namespace` the spec has the namespace but no mappings: which ids a container gets is
    decided where it is created.
    """
    own_network = options.network.get("kind") != "host"
    user = users.resolve(options.user, options.rootfs)
    capabilities = Capabilities.default(options.cap_add, options.cap_drop)
    spec: dict[str, Any] = {
        "ociVersion": defaults.OCI_VERSION,
        "process": _process(options, user, capabilities),
        "root": {"path": options.rootfs or "rootfs", "readonly": options.read_only},
        "hostname": options.hostname,
        "domainname": options.domainname,
        "mounts": _mounts(options, own_network),
        "annotations": _annotations(options),
        "linux": _linux(options, own_network, capabilities),
    }
    spec = {key: value for key, value in spec.items() if value != ""}
    fault = first_problem(spec, "that the flags mean")
    if fault is not None:
        raise fault
    return spec


def _process(options: Options, user: users.User, capabilities: Capabilities) -> dict[str, Any]:
    environment = defaults.environment(
        home=user.home, hostname=options.hostname, terminal=options.tty
    )
    for entry in options.env:
        if not _VARIABLE.fullmatch(entry):
            raise BadInput(doing="reading --env", target=entry, why="isn't NAME=VALUE")
        name, _, value = entry.partition("=")
        environment[name] = value
    identity: dict[str, Any] = {"uid": user.uid, "gid": user.gid}
    if user.additional_gids:
        identity["additionalGids"] = list(user.additional_gids)
    if options.umask is not None:
        identity["umask"] = options.umask
    # A user that isn't root starts with no capability in force, as everywhere: the bounding set
    # limits what set-uid programs could give it.
    sets = capabilities.to_spec()
    if user.uid != 0:
        sets = {"bounding": sets.get("bounding", [])}
    process: dict[str, Any] = {
        "terminal": options.tty,
        "user": identity,
        "args": list(options.args),
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": options.cwd,
        "capabilities": sets,
        "rlimits": [rlimits.parse(text).to_spec() for text in options.rlimits],
        "noNewPrivileges": options.no_new_privileges,
    }
    if options.oom_score_adj is not None:
        process["oomScoreAdj"] = options.oom_score_adj
    return process


def _mounts(options: Options, own_network: bool) -> list[dict[str, Any]]:
    """The defaults first; what is mounted by flag lies over them, parents before children."""
    asked = [*map(parse_tmpfs, options.tmpfs), *map(parse_volume, options.volumes)]
    places = [mount["destination"] for mount in asked]
    for place in places:
        if places.count(place) > 1:
            raise BadInput(doing="mounting", target=place, why="two flags mount something there")
    base = defaults.mounts(own_network=own_network, user_namespace=options.user_namespace)
    kept = [mount for mount in base if mount["destination"] not in places]
    return kept + sorted(asked, key=lambda mount: mount["destination"].count("/"))


def parse_tmpfs(text: str) -> dict[str, Any]:
    """A mount from "/path[:option,...]". Raises BadInput."""
    place, _, words = text.partition(":")
    options = ["nosuid", "nodev", *(word for word in words.split(",") if word)]
    if not any(option.startswith("mode=") for option in options):
        options.append("mode=1777")
    return {
        "destination": _place("--tmpfs", text, place),
        "type": "tmpfs",
        "source": "tmpfs",
        "options": options,
    }


def parse_volume(text: str) -> dict[str, Any]:
    """A bind mount from "/source:/destination[:ro|rw]". Raises BadInput."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise BadInput(doing="reading --volume", target=text, why="isn't SOURCE:DESTINATION[:ro]")
    if not parts[0].startswith("/"):
        raise BadInput(
            doing="reading --volume", target=text, why="its source isn't an absolute path"
        )
    return {
        "destination": _place("--volume", text, parts[1]),
        "type": "bind",
        "source": parts[0],
        "options": ["rbind", "rprivate", "nosuid", "nodev", parts[2] if len(parts) > 2 else "rw"],
    }


def _place(flag: str, text: str, place: str) -> str:
    clean = "/" + "/".join(part for part in place.split("/") if part not in ("", "."))
    if not place.startswith("/") or clean == "/" or ".." in clean.split("/"):
        raise BadInput(
            doing=f"reading {flag}",
            target=text,
            why='its place in the container isn\'t an absolute path without ".."',
        )
    return clean


def _annotations(options: Options) -> dict[str, str]:
    result = dict(options.annotations)
    if not _RESTART.fullmatch(options.restart):
        raise BadInput(
            doing="reading --restart",
            target=options.restart,
            why="isn't no, on-failure[:N] or always",
        )
    if options.network:
        result[NETWORK] = json.dumps(dict(options.network), sort_keys=True)
    result[RESTART] = options.restart
    if options.disk is not None:
        result[DISK] = str(options.disk)
    return result


def _linux(options: Options, own_network: bool, capabilities: Capabilities) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "namespaces": defaults.namespaces(
            own_network=own_network, user_namespace=options.user_namespace
        ),
        "resources": _resources(options),
        "maskedPaths": list(secured.MASKED),
        "readonlyPaths": list(secured.READ_ONLY),
    }
    if options.sysctl:
        linux["sysctl"] = dict(options.sysctl)
    if isinstance(options.seccomp, Mapping):
        linux["seccomp"] = dict(options.seccomp)
    elif options.seccomp == "default":
        linux["seccomp"] = default_profile(sorted(capabilities.names()))
    return linux


def _resources(options: Options) -> dict[str, Any]:
    cpu: dict[str, Any] = {
        "shares": options.cpu_shares,
        "burst": options.cpu_burst,
        "cpus": options.cpuset_cpus or None,
        "mems": options.cpuset_mems or None,
    }
    if options.cpus is not None:
        if not math.isfinite(options.cpus) or not 0.01 <= options.cpus <= 100_000:
            raise BadInput(
                doing="reading --cpus", target=str(options.cpus), why="isn't within 0.01..100000"
            )
        cpu |= {"quota": round(options.cpus * _PERIOD), "period": _PERIOD}
    memory = {
        "limit": options.memory,
        "reservation": options.memory_reservation,
        "swap": options.memory_swap,
    }
    io: dict[str, Any] = {
        "weight": options.io_weight,
        "throttleReadBpsDevice": _rates(options.io_read_bps),
        "throttleWriteBpsDevice": _rates(options.io_write_bps),
        "throttleReadIOPSDevice": _rates(options.io_read_iops),
        "throttleWriteIOPSDevice": _rates(options.io_write_iops),
    }
    groups = {"memory": memory, "cpu": cpu, "pids": {"limit": options.pids}, "blockIO": io}
    said = {
        name: {key: value for key, value in group.items() if value not in (None, [])}
        for name, group in groups.items()
    }
    result: dict[str, Any] = {name: group for name, group in said.items() if group}
    result["devices"] = defaults.device_rules()
    return result


def _rates(rates: tuple[DeviceRate, ...]) -> list[dict[str, int]]:
    return [{"major": r.major, "minor": r.minor, "rate": r.rate} for r in rates]
