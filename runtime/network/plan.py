"""Completes a network description for this host: subnet, addresses, MAC, MTU, gateways.

`resolve` is where a description meets a host. What a container brings along (from a checkpoint,
from another host) is kept or refused, never silently changed: a service that is bound to an
address, and every peer that knows it, would find out the hard way. Whoever wants another address
asks for it (`NetworkConfig.renewed`).

The bridge of `--network bridge` is described by `<root>/network/bridge.json`, written once and then
left alone; people may edit it while no container uses the bridge:
    {"bridge": "ckptx3f0a9", "subnets": ["10.88.0.0/16", "fd4b:...::/64"]}
The first subnet that clashes with no route is taken, always in the same order, so that hosts tend
to agree and a container can keep its address on its way. The IPv6 one is derived from it: it never
leaves the host (NAT).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import BadInput, Conflict, NotFound, Unsupported, from_os_error
from runtime.network import ipam, links
from runtime.network import netlink as nl
from runtime.network.config import NetworkConfig, is_interface_name
from runtime.network.ipam import Interface, Network

_DEFAULT_MTU = 1500
_LARGEST = 64 * 1024


@dataclass(frozen=True, slots=True)
class OwnBridge:
    """The bridge which ckpt makes for its root, and what lies behind it."""

    name: str
    subnets: tuple[Network, ...]

    def gateways(self) -> list[Interface]:
        """The bridge's own addresses: the first of each subnet."""
        return [ipaddress.ip_interface((s.network_address + 1, s.prefixlen)) for s in self.subnets]


def resolve(config: NetworkConfig, *, root_dir: str | Path, container_id: str) -> NetworkConfig:
    """CONFIG with everything filled in, its addresses and MAC held for CONTAINER_ID.

    For the same container again and again the same. Raises Conflict where an address is another
    container's or doesn't fit this host's subnet, NotFound for an l2 bridge that isn't there.
    Releasing is `host.destroy`'s business, or `host.sweep`'s for a container that was never made.
    """
    ipam.check_id(container_id)
    if not config.has_link:
        return config
    mac = config.mac or _derived_mac(container_id)
    with nl.Socket() as sock, ipam.locked(root_dir) as leases:
        if config.kind == "l2":
            bridge = _shared_bridge(sock, config.bridge)
            leases.claim(bridge.name, _interfaces(config), mac, container_id)
            return config.replace(mac=mac, mtu=config.mtu or bridge.mtu)
        own = own_bridge(root_dir, sock)
        if config.addresses:
            for address in _interfaces(config):
                _check_fits(address, own, container_id)
            addresses = _interfaces(config)
        else:
            addresses = [leases.allocate(own.name, s, container_id) for s in own.subnets]
        leases.claim(own.name, addresses, mac, container_id)
    versions = {address.version for address in addresses}
    gateways = tuple(str(g.ip) for g in own.gateways() if g.version in versions)
    return config.replace(
        bridge=own.name,
        addresses=tuple(map(str, addresses)),
        gateways=gateways,
        mac=mac,
        mtu=config.mtu or _uplink_mtu(),
    )


def conflicts(config: NetworkConfig, *, root_dir: str | Path, container_id: str) -> list[str]:
    """Why `resolve` would refuse, a line each; changes nothing. For a preflight."""
    if not config.has_link:
        return []
    try:
        with nl.Socket() as sock, ipam.locked(root_dir) as leases:
            if config.kind == "l2":
                name = _shared_bridge(sock, config.bridge).name
            else:
                own = own_bridge(root_dir, sock)
                name = own.name
                for address in _interfaces(config):
                    _check_fits(address, own, container_id)
            leases.check_free(name, _interfaces(config), config.mac, container_id)
    except (Conflict, NotFound, BadInput, Unsupported) as fault:
        return [str(fault)]
    return []


def own_bridge(root_dir: str | Path, sock: nl.Socket) -> OwnBridge:
    """The description of this root's bridge, chosen and written down at the first call.

    To be called under the lock. Raises BadInput if somebody edited the file into something useless,
    Conflict if every candidate subnet is in use on this host.
    """
    path = ipam.directory(root_dir) / "bridge.json"
    try:
        with path.open("rb") as file:
            return _read_bridge(path, file.read(_LARGEST))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise from_os_error(error, doing="reading", target=str(path)) from error
    taken = [network for network, _ in _routed(sock)]
    name = "ckpt" + hashlib.sha256(os.fsencode(Path(root_dir).absolute())).hexdigest()[:7]
    for subnet in candidates():
        if any(_overlap(subnet, other) for other in taken):
            continue
        subnets: tuple[Network, ...] = (subnet, private_v6(subnet)) if has_ipv6() else (subnet,)
        own = OwnBridge(name, subnets)
        _write_bridge(path, own)
        return own
    raise Conflict(
        doing="choosing a subnet for",
        target=f"bridge {name}",
        why="the host has routes into all of 10.88.0.0/16 to 10.119.0.0/16 and 172.30.0.0/16",
        hint=f'write {{"bridge": "{name}", "subnets": ["..."]}} to {path}',
    )


def candidates() -> list[ipaddress.IPv4Network]:
    """Subnets for a bridge, in the order of trying."""
    tens = [ipaddress.IPv4Network(f"10.{second}.0.0/16") for second in range(88, 120)]
    return [*tens, ipaddress.IPv4Network("172.30.0.0/16")]


def private_v6(subnet: ipaddress.IPv4Network) -> ipaddress.IPv6Network:
    """A unique local subnet (RFC 4193) that belongs to the IPv4 one, on every host the same."""
    digest = hashlib.sha256(b"ckpt bridge " + str(subnet).encode()).digest()
    return ipaddress.IPv6Network((b"\xfd" + digest[:5] + bytes(10), 64))


def has_ipv6() -> bool:
    """Whether the calling thread's network namespace does IPv6."""
    try:
        return Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def clashes(own: OwnBridge, sock: nl.Socket) -> list[str]:
    """Routes of this host, not the bridge's own, which overlap with the bridge's subnets."""
    link = links.find(sock, own.name)
    mine = link.index if link else -1
    return [
        str(network)
        for network, index in _routed(sock)
        if index != mine and any(_overlap(subnet, network) for subnet in own.subnets)
    ]


def _routed(sock: nl.Socket) -> list[tuple[Network, int]]:
    found: list[tuple[Network, int]] = []
    for _, raw, prefix, index in links.routes(sock):
        if raw:  # a default route clashes with nothing
            found.append((ipaddress.ip_network((raw, prefix)), index))
    return found


def _overlap(a: Network, b: Network) -> bool:
    return a.version == b.version and a.overlaps(b)


def _uplink_mtu() -> int:
    """The smallest MTU of the default routes' interfaces: through a tunnel 1500 would not fit."""
    with nl.Socket() as sock:
        defaults = {index for _, raw, prefix, index in links.routes(sock) if not raw and not prefix}
        found = [link.mtu for link in links.all_links(sock) if link.index in defaults]
    return max(1280, min([_DEFAULT_MTU, *found]))


def _shared_bridge(sock: nl.Socket, name: str) -> links.Link:
    link = links.find(sock, name)
    if link is None or link.kind != "bridge":
        raise NotFound(
            doing="using bridge",
            target=name,
            why="there is no such interface" if link is None else f"it is a {link.kind or 'link'}",
            hint=f"ip link add {name} type bridge, and put the uplink into it",
        )
    return link


def _check_fits(address: Interface, own: OwnBridge, container_id: str) -> None:
    for subnet, gateway in zip(own.subnets, own.gateways(), strict=True):
        if address.network == subnet and address.ip != gateway.ip:
            return
    raise Conflict(
        doing="using address",
        target=f"{address} for {container_id}",
        why=f"bridge {own.name} has {', '.join(map(str, own.subnets))} here, or the address itself",
        hint="take another address, or network l2",
    )


def _interfaces(config: NetworkConfig) -> list[Interface]:
    return [ipaddress.ip_interface(address) for address in config.addresses]


def _derived_mac(container_id: str) -> str:
    # 02: locally administered, unicast.
    return "02:" + hashlib.sha256(container_id.encode()).digest()[:5].hex(":")


def _read_bridge(path: Path, raw: bytes) -> OwnBridge:
    try:
        value = json.loads(raw)
        name = value["bridge"]
        subnets = tuple(ipaddress.ip_network(text) for text in value["subnets"])
        if not isinstance(name, str) or not is_interface_name(name):
            raise ValueError(f"{name!r} is no interface name")
        versions = [subnet.version for subnet in subnets]
        if not subnets or len(set(versions)) != len(versions):
            raise ValueError("one subnet per address family is needed")
        if any(subnet.num_addresses < 8 for subnet in subnets):
            raise ValueError("a subnet is too small")
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            doing="reading",
            target=str(path),
            why=str(error),
            hint="correct it, or remove it for a new one",
        ) from error
    return OwnBridge(name, subnets)


def _write_bridge(path: Path, own: OwnBridge) -> None:
    value = {"bridge": own.name, "subnets": [str(subnet) for subnet in own.subnets]}
    temp = path.with_name(f".{path.name}.tmp")
    try:
        with temp.open("w") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temp.rename(path)
    except OSError as error:
        raise from_os_error(error, doing="writing", target=str(path)) from error
