"""What a container has when nobody says otherwise, as production engines have it."""

from __future__ import annotations

from typing import Any

from runtime.security.paths import default_devices

OCI_VERSION = "1.2.0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHM_SIZE = "64m"

_CLOSED = ["nosuid", "noexec", "nodev"]


def mounts(*, own_network: bool, user_namespace: bool) -> list[dict[str, Any]]:
    """The file systems of the kernel's own.

    A user namespace may mount sysfs only together with a network namespace of its own, so a
    container with the host's network and mapped ids has no /sys.
    """
    result = [
        _mount("/proc", "proc", _CLOSED),
        _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount("/dev/shm", "tmpfs", [*_CLOSED, "mode=1777", f"size={SHM_SIZE}"]),
        _mount("/dev/mqueue", "mqueue", _CLOSED),
    ]
    if own_network or not user_namespace:
        result.append(_mount("/sys", "sysfs", [*_CLOSED, "ro"]))
    result.append(_mount("/sys/fs/cgroup", "cgroup", [*_CLOSED, "relatime", "ro"]))
    return result


def _mount(destination: str, kind: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def device_rules() -> list[dict[str, Any]]:
    """Nothing but the nodes that every container has, and its own pseudo-terminals (136:*)."""
    numbers = [(node["major"], node["minor"]) for node in default_devices()]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for major, minor in [*numbers, (5, 2)]:
        rules.append({"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"})
    rules.append({"allow": True, "type": "c", "major": 136, "access": "rwm"})
    return rules


def namespaces(*, own_network: bool, user_namespace: bool) -> list[dict[str, str]]:
    """All of them, except those that were declined."""
    kinds = ["pid", "mount", "ipc", "uts", "cgroup"]
    if own_network:
        kinds.append("network")
    if user_namespace:
        kinds.append("user")
    return [{"type": kind} for kind in kinds]


def environment(*, home: str, hostname: str, terminal: bool) -> dict[str, str]:
    """Variables that every program may count on."""
    result = {"PATH": PATH, "HOME": home}
    if hostname:
        result["HOSTNAME"] = hostname
    if terminal:
        result["TERM"] = "xterm"
    return result
