"""What of /proc and /sys a container doesn't see or can't write, its device nodes, its sysctls."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runtime.errors import BadInput, Unsupported

# Files that tell of, or reach, the host: memory, keys, timers, firmware, hardware.
MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


def default_devices() -> list[dict[str, Any]]:
    """The nodes that every container has in /dev (OCI config-linux, "Default Devices").

    In the form of `linux.devices`. /dev/ptmx isn't a node but a link to pts/ptmx, and /dev/console
    exists with a terminal only: whoever mounts devpts makes them.
    """
    nodes = [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)]
    devices = [_node(f"/dev/{name}", 1, minor) for name, minor in nodes]
    return [*devices, _node("/dev/tty", 5, 0)]


def _node(path: str, major: int, minor: int) -> dict[str, Any]:
    return {
        "path": path,
        "type": "c",
        "major": major,
        "minor": minor,
        "fileMode": 0o666,
        "uid": 0,
        "gid": 0,
    }


def default_sysctls(*, own_network: bool) -> dict[str, str]:
    """Those that make a container without NET_BIND_SERVICE and NET_RAW useful.

    Ports below 1024 are the container's own in its own network namespace, so anyone in it may
    use them; and anyone may send pings, without raw sockets.
    """
    if not own_network:
        return {}
    return {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    }


_KEY = re.compile(r"[A-Za-z0-9_-]+(?:[./][A-Za-z0-9_:@-]+)+")
_IPC = frozenset({"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem"}) | {
    f"kernel.{name}" for name in ("shmall", "shmmax", "shmmni", "shm_rmid_forced")
}
_UTS = {"kernel.hostname": "hostname", "kernel.domainname": "domainname"}


def sysctls_from_spec(values: Any, *, own_network: bool, own_ipc: bool) -> dict[str, str]:
    """`linux.sysctl`, checked: only keys that a namespace of the container has for itself.

    Any other would change the whole host. Returns key (with dots) -> value. Raises BadInput,
    Unsupported.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise _bad("", "has to be an object")
    checked: dict[str, str] = {}
    for key, value in values.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key) or len(key) > 256:
            raise _bad(repr(key), "isn't the name of a kernel setting")
        if not isinstance(value, str) or len(value) > 4096 or "\0" in value or "\n" in value:
            raise _bad(key, "its value has to be one line of text")
        dotted = _dotted(key)
        _check_namespace(dotted, own_network=own_network, own_ipc=own_ipc)
        if dotted in checked:
            raise _bad(key, "is there twice")
        checked[dotted] = value
    return checked


def sysctl_path(key: str) -> str:
    """The file of a checked key: dots separate, and a slash stands for a dot inside a name."""
    return "/proc/sys/" + key.translate({ord("."): "/", ord("/"): "."})


def _dotted(key: str) -> str:
    """sysctl(8) takes either separator, the first one decides: net/ipv4/x or net.ipv4.x."""
    first = re.search(r"[./]", key)
    if first is not None and first.group() == "/":
        return key.translate({ord("."): "/", ord("/"): "."})
    return key


def _check_namespace(key: str, *, own_network: bool, own_ipc: bool) -> None:
    def needs(kind: str) -> Unsupported:
        why = f"would change the host: the container has no {kind} namespace of its own"
        return Unsupported(doing="reading the spec's", target=f"linux.sysctl {key}", why=why)

    if key.startswith("net."):
        if not own_network:
            raise needs("network")
    elif key in _IPC or key.startswith("fs.mqueue."):
        if not own_ipc:
            raise needs("ipc")
    elif key in _UTS:
        raise Unsupported(
            doing="reading the spec's",
            target=f"linux.sysctl {key}",
            why=f"is set by the spec's {_UTS[key]}",
        )
    else:
        raise Unsupported(
            doing="reading the spec's",
            target=f"linux.sysctl {key}",
            why="isn't a setting that a container can have for itself",
            hint="net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem",
        )


def _bad(where: str, why: str) -> BadInput:
    return BadInput(doing="reading the spec's", target=f"linux.sysctl {where}".strip(), why=why)
