"""What networks of containers need: nftables, IPv6, forwarding."""

from __future__ import annotations

import os
from pathlib import Path

from ckpt.ops.doctor.kernel import sysctl
from ckpt.ops.doctor.row import Probe, Row, in_child
from runtime import syscalls
from runtime.network import firewall, links
from runtime.network import netlink as nl


def probes() -> dict[str, Probe]:
    return {
        "nftables": nftables,
        "links": link_kinds,
        "IPv6": ipv6,
        "forwarding": forwarding,
    }


def nftables() -> Row:
    """A bridge's own table, written in a network namespace that goes away with the child."""

    def write() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        firewall.write("probe", ["192.0.2.0/24", "2001:db8::/64"], [])

    why = in_child(write)
    if not why:
        return Row("nftables", "yes")
    return Row(
        "nftables",
        f"no: {why}",
        "warn",
        "no networks of kind bridge, no published ports; open connections can't be locked for a dump",
        "apt install nftables; the kernel needs CONFIG_NF_TABLES_INET, NFT_NAT, NFT_MASQ and NFT_FIB_INET",
    )


def link_kinds() -> Row:
    """A bridge and a veth pair, made where nobody sees them."""

    def make() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        with nl.Socket() as sock:
            own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            sock.request(links.create_bridge("probe0", "02:00:00:00:00:01", 1500))
            first, second = "02:00:00:00:00:02", "02:00:00:00:00:03"
            sock.request(
                links.create_veth(
                    "probe1", first, 1500, index=0, peer="probe2", peer_mac=second, peer_netns=own
                )
            )

    why = in_child(make)
    if not why:
        return Row("links", "bridge veth")
    fix = "a kernel with CONFIG_BRIDGE and CONFIG_VETH"
    return Row("links", f"no: {why}", "warn", "only --network none and host work", fix)


def ipv6() -> Row:
    if not Path("/proc/sys/net/ipv6").is_dir():
        fix = "take ipv6.disable=1 from the kernel's command line"
        return Row("IPv6", "not in this kernel", "warn", "containers get IPv4 only", fix)
    if sysctl("net.ipv6.conf.all.disable_ipv6") == "1":
        fix = "sysctl -w net.ipv6.conf.all.disable_ipv6=0"
        return Row("IPv6", "switched off", "warn", "containers get IPv4 only", fix)
    return Row("IPv6", "yes")


def forwarding() -> Row:
    names = {"IPv4": "net.ipv4.ip_forward", "IPv6": "net.ipv6.conf.all.forwarding"}
    states = {name: sysctl(key) for name, key in names.items()}
    value = ", ".join(f"{name} {'on' if v == '1' else 'off'}" for name, v in states.items() if v)
    off = [names[name] for name, state in states.items() if state == "0"]
    stuck = [key for key in off if not os.access(f"/proc/sys/{key.replace('.', '/')}", os.W_OK)]
    if stuck:
        fix = f"on the machine around this one: sysctl -w {'=1 '.join(stuck)}=1"
        consequence = "containers on a bridge reach nothing outside of it"
        return Row("forwarding", value, "warn", consequence, fix)
    if off:
        value += " (switched on with the first bridge network)"
    return Row("forwarding", value)
