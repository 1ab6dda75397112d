"""The lab's wiring: a network namespace per host and one for the switch, bridges and cables.

    ckpt-RUN-switch                    ckpt-RUN-a                     ckpt-RUN-c
    ┌──────────────────────┐           ┌─────────────────────┐        ┌─────────────
    │ sw0 ─┬─ port-a ══════╪═══════════╪═ uplink ─┬─ br0      │        │ (the same)
    │      ├─ port-b ══ b  │           │          │  10.77.0.1│        │  10.77.0.3
    │      └─ port-c ══ c  │           │ containers' cables   │
    └──────────────────────┘           └─────────────────────┘

Everything lies inside the namespaces, and so goes with them; nothing appears in the machine's own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

NETNS = Path("/run/netns")
BRIDGE = "br0"
NET4, NET6 = "10.77.0", "fd77:"


class LabError(Exception):
    """The lab could not be made, used or removed."""


def ip(*argv: str, check: bool = True) -> str:
    """ip(8); raises LabError with its last words."""
    return tool("ip", *argv, check=check)


def tool(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def namespace(run: str, name: str) -> str:
    return f"ckpt-{run}-{name}"


def addresses(number: int) -> tuple[str, str]:
    """The IPv4 and the IPv6 address of host NUMBER, without prefix length."""
    return f"{NET4}.{number}", f"{NET6}:{number}"


def make(run: str, names: list[str]) -> None:
    """Namespaces, switch, cables and addresses."""
    switch = namespace(run, "switch")
    ip("netns", "add", switch)
    # No multicast snooping: a segment as simple as a dumb switch.
    ip("-n", switch, "link", "add", "sw0", "type", "bridge", "mcast_snooping", "0")
    ip("-n", switch, "link", "set", "sw0", "up")
    for number, name in enumerate(names, 1):
        host = namespace(run, name)
        ip("netns", "add", host)
        port = f"port-{name}"
        ip("-n", switch, "link", "add", port, "type", "veth",
           "peer", "name", "uplink", "netns", host)  # fmt: skip
        ip("-n", switch, "link", "set", port, "master", "sw0", "up")
        ip("-n", host, "link", "set", "lo", "up")
        ip("-n", host, "link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0")
        # Up before it has a port: the kernel then takes its carrier as urgent, otherwise it may
        # let the bridge drop packets for a second.
        ip("-n", host, "link", "set", BRIDGE, "up")
        v4, v6 = addresses(number)
        ip("-n", host, "address", "add", f"{v4}/24", "dev", BRIDGE)
        ip("-n", host, "address", "add", f"{v6}/64", "dev", BRIDGE, "nodad")
        ip("-n", host, "link", "set", "uplink", "master", BRIDGE, "up")


def existing(run: str) -> list[str]:
    """The lab's namespaces that are there."""
    if not NETNS.is_dir():
        return []
    return sorted(entry.name for entry in NETNS.iterdir() if entry.name.startswith(f"ckpt-{run}-"))


def inodes(run: str) -> set[int]:
    """The identities of the lab's namespaces, as /proc/PID/ns/net shows them."""
    return {(NETNS / name).stat().st_ino for name in existing(run)}


def remove(run: str) -> None:
    for name in existing(run):
        ip("netns", "delete", name, check=False)


def set_port(run: str, name: str, up: bool) -> None:
    """Pull or plug a host's cable, at the switch's end."""
    switch = namespace(run, "switch")
    ip("-n", switch, "link", "set", f"port-{name}", "up" if up else "down")


def limit(run: str, name: str, rate: str | None) -> None:
    """Let a host send and receive at most RATE (as in tc(8): "100mbit"); None: no limit."""
    ends = [(namespace(run, "switch"), f"port-{name}"), (namespace(run, name), "uplink")]
    for place, link in ends:
        if rate is None:
            tool("tc", "-n", place, "qdisc", "delete", "dev", link, "root", check=False)
        else:
            tool("tc", "-n", place, "qdisc", "replace", "dev", link, "root", "tbf",
                 "rate", rate, "burst", "256kb", "latency", "50ms")  # fmt: skip
