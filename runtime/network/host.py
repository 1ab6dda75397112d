"""A container's network on its host: what is made, and taken away again, around the plug.

    resolve (plan.py) → prepare → plug → attach → announce ... detach ⇄ attach ... destroy

Whatever is made is named after root and container, and follows from the lease: every step may be
called again after a crash at any point, and brings the same result. `plug`, `attach`, `detach` and
`announce` live in modules of their own, which a small process can import without the rest.

All is relative to the calling thread's network namespace, so that several hosts fit on one machine.

What is left behind on the host on purpose: forwarding stays on (net.ipv4.ip_forward,
net.ipv6.conf.all.forwarding), as others may have begun to rely on it. A host that got its IPv6
default route from router advertisements would lose it with forwarding; so interfaces with accept_ra
1 get 2 ("even if forwarding") first.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import ipaddress
import logging
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import Any

from runtime.errors import Conflict, Unsupported, from_os_error
from runtime.network import firewall, ipam, links, plan
from runtime.network import netlink as nl
from runtime.network.announce import announce
from runtime.network.config import NetworkConfig, PortMapping
from runtime.network.plug import Prepared, attach, detach, plug, remove_host_end

__all__ = [
    "Prepared",
    "announce",
    "attach",
    "describe",
    "destroy",
    "detach",
    "plug",
    "prepare",
    "remove_host_end",
    "state",
    "sweep",
]

log = logging.getLogger(__name__)


def prepare(config: NetworkConfig, container_id: str, *, root_dir: str | Path) -> Prepared:
    """Make everything that can be made before the container's namespace exists.

    CONFIG is a resolved one. Its published ports lead to the container's addresses from here on,
    where nobody answers until `attach`. Raises Conflict before anything is made if a port or an
    address is in use. Takes 10-50 ms.
    """
    prepared = describe(config, container_id, root_dir=root_dir)
    if not config.has_link:
        return prepared
    root = prepared.root_dir
    addresses = [ipaddress.ip_interface(address) for address in config.addresses]
    nat = config.kind == "bridge"
    try:
        with nl.Socket() as sock, ipam.locked(root) as leases:
            if nat:
                _check_ports(config.ports, container_id, leases.all())
            lease = leases.claim(config.bridge, addresses, config.mac, container_id)
            leases.put(dataclasses.replace(lease, ports=config.ports, active=True, nat=nat))
            remove_host_end(prepared.host_end)  # of a life that ended without goodbye
            if nat:
                own = plan.own_bridge(root, sock)
                _make_bridge(own, sock, config.mtu, root)
                _write_firewall(own, leases.all())
    except OSError as error:
        raise from_os_error(
            error, doing="preparing the network for", target=container_id
        ) from error
    return prepared


def describe(config: NetworkConfig, container_id: str, *, root_dir: str | Path) -> Prepared:
    """What `prepare` returns, for a network that is prepared already; makes and changes nothing."""
    root = str(Path(root_dir).absolute())
    ipam.check_id(container_id)
    if not config.has_link:
        return Prepared(container_id=container_id, root_dir=root, kind=config.kind)
    return Prepared(
        container_id=container_id,
        root_dir=root,
        kind=config.kind,
        bridge=config.bridge,
        host_end=host_end(root, container_id),
        interface=config.interface,
        mac=config.mac,
        mtu=config.mtu,
        addresses=config.addresses,
        gateways=config.gateways,
        hairpin=bool(config.ports),
    )


def destroy(
    config: NetworkConfig, container_id: str, *, root_dir: str | Path, keep_addresses: bool = False
) -> None:
    """Take everything away; fine if it is gone. With KEEP_ADDRESSES they stay this container's.

    The bridge and its table go with the last container. Takes 20-50 ms: the kernel waits for every
    CPU before an interface is gone.
    """
    ipam.check_id(container_id)
    if not config.has_link:
        return
    root = str(Path(root_dir).absolute())
    try:
        with nl.Socket() as sock, ipam.locked(root) as leases:
            remove_host_end(host_end(root, container_id))
            lease = leases.get(container_id)
            if lease is not None and keep_addresses:
                leases.put(dataclasses.replace(lease, ports=(), active=False))
            else:
                leases.release(container_id)
            if config.kind == "bridge":
                _shrink(sock, root, leases.all())
    except OSError as error:
        raise from_os_error(error, doing="removing the network of", target=container_id) from error


def sweep(live_ids: Collection[str], *, root_dir: str | Path) -> list[str]:
    """Take away what containers hold that aren't among LIVE_IDS; returns their ids."""
    root = str(Path(root_dir).absolute())
    if not (ipam.directory(root) / "leases").is_dir():
        return []
    with nl.Socket() as sock, ipam.locked(root) as leases:
        stale = leases.sweep(live_ids)
        for container_id in stale:
            log.info("releasing the network of %s, which is gone", container_id)
            remove_host_end(host_end(root, container_id))
        if stale and (ipam.directory(root) / "bridge.json").exists():
            _shrink(sock, root, leases.all())
    return stale


def state(config: NetworkConfig, container_id: str, *, root_dir: str | Path) -> dict[str, Any]:
    """What is there now, for `inspect`: JSON-able."""
    found: dict[str, Any] = {
        "kind": config.kind,
        "bridge": config.bridge,
        "addresses": list(config.addresses),
        "gateways": list(config.gateways),
        "mac": config.mac,
        "ports": [str(port) for port in config.ports],
        "host_interface": None,
        "attached": False,
    }
    if config.has_link:
        with nl.Socket() as sock:
            end = links.find(sock, host_end(str(Path(root_dir).absolute()), container_id))
        if end is not None:
            found["host_interface"] = end.name
            found["attached"] = bool(end.up and end.master)
    return found


def host_end(root_dir: str, container_id: str) -> str:
    """The name of the cable's end on the host: 15 characters at most, for root and id the same."""
    key = f"{root_dir}\0{ipam.check_id(container_id)}".encode()
    return f"ck{hashlib.sha256(key).hexdigest()[:10]}h"


def _check_ports(
    ports: Collection[PortMapping], container_id: str, leases: list[ipam.Lease]
) -> None:
    """Raise Conflict if a published port is another container's or a process's of the host."""
    mine: set[PortMapping] = set()
    for lease in leases:
        if not lease.active or not lease.nat:
            continue
        if lease.container_id == container_id:
            mine = set(lease.ports)
            continue
        for port in ports:
            if any(port.overlaps(other) for other in lease.ports):
                raise _port_conflict(port, f"container {lease.container_id} publishes it already")
    for port in ports:
        if port.host_ip == "::1":
            raise Unsupported(
                doing="publishing port",
                target=str(port),
                why="the kernel lets nothing from ::1 out of the loopback interface",
                hint=f"127.0.0.1:{port.host_port}:{port.container_port} works",
            )
        if port not in mine and (why := _bound(port)):
            raise _port_conflict(port, why)


def _port_conflict(port: PortMapping, why: str) -> Conflict:
    return Conflict(
        doing="publishing port",
        target=str(port),
        why=why,
        hint=f"another host port than {port.host_port}, or another address",
    )


def _bound(port: PortMapping) -> str:
    """Why PORT can't be bound on this host now, "" if it can."""
    kind = socket.SOCK_STREAM if port.proto == "tcp" else socket.SOCK_DGRAM
    for ip in [port.host_ip] if port.host_ip else ["0.0.0.0", "::"]:
        family, _ = links.packed(ip)
        try:
            with socket.socket(family, kind) as probe:
                if port.proto == "tcp":
                    # Connections in TIME_WAIT are no obstacle; a listening socket is.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((ip, port.host_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "a process of the host listens there"
            if error.errno == errno.EADDRNOTAVAIL and port.host_ip:
                return "the host doesn't have that address"
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise
    return ""


def _make_bridge(own: plan.OwnBridge, sock: nl.Socket, mtu: int, root: str) -> None:
    """The bridge with its addresses, up; forwarding on. Raises Conflict if it isn't ours to use."""
    link = links.find(sock, own.name)
    if link is not None and (link.kind != "bridge" or link.alias != _alias(root)):
        raise Conflict(
            doing="making bridge",
            target=own.name,
            why=f"there is a {link.kind or 'link'} of that name, and not ckpt's for {root}",
            hint=f"give another name in {ipam.directory(root) / 'bridge.json'}",
        )
    if clashing := plan.clashes(own, sock):
        raise Conflict(
            doing="making bridge",
            target=own.name,
            why=f"the host has a route to {clashing[0]}, which overlaps with its subnet",
            hint=f"give another subnet in {ipam.directory(root) / 'bridge.json'}",
        )
    if link is None:
        mac = "02:" + hashlib.sha256(own.name.encode()).digest()[:5].hex(":")
        sock.request(links.create_bridge(own.name, mac, mtu))
        link = links.find(sock, own.name)
        assert link is not None
        # Marked at once: a bridge without the mark would not be ours any more after a crash.
        sock.request(links.change(link.index, own.name, alias=_alias(root)))
    what = f"bridge {own.name}"
    # Published ports answer on 127.0.0.1 too; the firewall keeps containers from the host's own.
    _sysctl(f"ipv4/conf/{own.name}/route_localnet", "1")
    if any(subnet.version == 6 for subnet in own.subnets):
        # The bridge asks for its containers' MACs from its link-local address, which would be
        # unusable for a second while the kernel makes sure that it is unique. It is.
        _sysctl(f"ipv6/conf/{own.name}/accept_dad", "0")
    sock.request(
        links.change(link.index, what, up=True),
        *(links.add_address(link.index, str(gateway)) for gateway in own.gateways()),
    )
    _forward(sock, any(subnet.version == 6 for subnet in own.subnets))


def _alias(root: str) -> str:
    return f"ckpt bridge of {root}"[:255]


def _forward(sock: nl.Socket, ipv6: bool) -> None:
    """Make the host a router, if it isn't one."""
    if _sysctl_value("ipv4/ip_forward") != "1":
        log.info("switching on net.ipv4.ip_forward")
        _sysctl("ipv4/ip_forward", "1")
    if not ipv6 or _sysctl_value("ipv6/conf/all/forwarding") == "1":
        return
    log.info("switching on net.ipv6.conf.all.forwarding")
    for link in links.all_links(sock):
        if _sysctl_value(f"ipv6/conf/{link.name}/accept_ra") == "1":
            _sysctl(f"ipv6/conf/{link.name}/accept_ra", "2")
    _sysctl("ipv6/conf/all/forwarding", "1")


def _sysctl_value(name: str) -> str:
    try:
        return Path("/proc/sys/net", name).read_text().strip()
    except OSError:
        return ""


def _sysctl(name: str, value: str) -> None:
    fd = os.open(f"/proc/sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _write_firewall(own: plan.OwnBridge, leases: list[ipam.Lease]) -> None:
    firewall.write(
        own.name,
        [str(subnet) for subnet in own.subnets],
        [lease for lease in leases if lease.nat and lease.bridge == own.name],
    )


def _shrink(sock: nl.Socket, root: str, leases: list[ipam.Lease]) -> None:
    """Write the firewall without what has gone; with the last container the bridge goes too."""
    own = plan.own_bridge(root, sock)
    link = links.find(sock, own.name)
    if any(lease.active and lease.nat for lease in leases):
        _write_firewall(own, leases)
        return
    firewall.remove(own.name)
    if link is not None and link.alias == _alias(root):
        sock.request(links.delete(link.index, f"bridge {own.name}"))
