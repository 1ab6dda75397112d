"""Interfaces, addresses and routes: each function builds one netlink request or reads one thing.

Those that return a `Message` only build it, so that a caller sends several in one go; `find`,
`all_links`, `addresses` and `routes` ask. Layouts: linux/if_link.h, linux/if_addr.h,
linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys

from runtime.network import netlink as nl

LOOPBACK = 1  # the index of `lo` in every network namespace

_IFF_UP = 0x1
_IFF_NOARP = 0x80

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO, _IFLA_IFALIAS = 10, 12, 18, 20
_IFLA_NET_NS_FD = 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_VETH_INFO_PEER = 1
_IFLA_BR_STP_STATE = 5
_IFLA_BRPORT_MODE = 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN = 254
_RTPROT_STATIC = 4
_RTN_UNICAST = 1

_IFINFO = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_IFADDR = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_RTMSG = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst, src, tos, table, protocol, scope, type


class Link:
    """An interface as the kernel tells it. MASTER is the bridge's index, 0 without one."""

    __slots__ = ("alias", "index", "kind", "mac", "master", "mtu", "name", "up")

    def __init__(self, body: bytes) -> None:
        _, _, self.index, flags, _ = _IFINFO.unpack_from(body)
        attrs = nl.parse_attrs(memoryview(body)[_IFINFO.size :])
        info = nl.parse_attrs(attrs.get(_IFLA_LINKINFO, b""))
        self.name: str = _text(attrs.get(_IFLA_IFNAME))
        self.up = bool(flags & _IFF_UP)
        self.mac: str = attrs.get(_IFLA_ADDRESS, b"").hex(":")
        self.mtu: int = _u32(attrs.get(_IFLA_MTU))
        self.master: int = _u32(attrs.get(_IFLA_MASTER))
        self.alias: str = _text(attrs.get(_IFLA_IFALIAS))
        self.kind: str = _text(info.get(_IFLA_INFO_KIND))

    def __repr__(self) -> str:
        return f"<{self.kind or 'link'} {self.index} {self.name}>"


def _text(raw: bytes | None) -> str:
    return (raw or b"").rstrip(b"\0").decode(errors="replace")


def _u32(raw: bytes | None) -> int:
    return int.from_bytes(raw[:4], sys.byteorder) if raw else 0


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def packed(ip: str) -> tuple[int, bytes]:
    """(address family, network byte order) of a textual IP address."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return family, socket.inet_pton(family, ip)


def find(sock: nl.Socket, name: str) -> Link | None:
    """The interface called NAME in the socket's network namespace."""
    body = _IFINFO.pack(0, 0, 0, 0, 0) + nl.text(_IFLA_IFNAME, name)
    try:
        answers = sock.ask(nl.Message(nl.RTM_GETLINK, body, f"link {name}"))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return Link(answers[0][1])


def all_links(sock: nl.Socket) -> list[Link]:
    """Every interface of the socket's network namespace."""
    body = _IFINFO.pack(0, 0, 0, 0, 0)
    request = nl.Message(nl.RTM_GETLINK, body, "links", flags=nl.NLM_F_DUMP)
    return [Link(answer) for _, answer in sock.ask(request)]


def create_veth(
    name: str, mac: str, mtu: int, *, index: int, peer: str, peer_mac: str, peer_netns: int
) -> nl.Message:
    """A pair of virtual Ethernet interfaces, each born where it shall be.

    NAME appears in the socket's namespace, up, with the given INDEX; PEER in that of the descriptor
    PEER_NETNS, down, and with ARP switched off. An interface that is made here and then moved costs
    20 ms: moving waits for every CPU to forget it (synchronize_net); this costs 0.3 ms.
    """
    other = (
        _IFINFO.pack(0, 0, 0, _IFF_NOARP, _IFF_NOARP)
        + nl.text(_IFLA_IFNAME, peer)
        + nl.attr(_IFLA_ADDRESS, mac_bytes(peer_mac))
        + nl.u32(_IFLA_MTU, mtu)
        + nl.u32(_IFLA_NET_NS_FD, peer_netns)
    )
    body = (
        _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP)
        + nl.text(_IFLA_IFNAME, name)
        + nl.attr(_IFLA_ADDRESS, mac_bytes(mac))
        + nl.u32(_IFLA_MTU, mtu)
        + _kind("veth", nl.nested(_VETH_INFO_PEER, other))
    )
    return nl.Message(nl.RTM_NEWLINK, body, f"veth {name}", flags=nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def create_bridge(name: str, mac: str, mtu: int) -> nl.Message:
    """A bridge without spanning tree: a port forwards as soon as it is added."""
    body = (
        _IFINFO.pack(0, 0, 0, 0, 0)
        + nl.text(_IFLA_IFNAME, name)
        + nl.attr(_IFLA_ADDRESS, mac_bytes(mac))
        + nl.u32(_IFLA_MTU, mtu)
        + _kind("bridge", nl.u32(_IFLA_BR_STP_STATE, 0))
    )
    return nl.Message(nl.RTM_NEWLINK, body, f"bridge {name}", flags=nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def _kind(kind: str, data: bytes) -> bytes:
    return nl.nested(
        _IFLA_LINKINFO, nl.text(_IFLA_INFO_KIND, kind), nl.nested(_IFLA_INFO_DATA, data)
    )


def change(
    index: int,
    what: str,
    *,
    up: bool | None = None,
    master: int | None = None,
    alias: str | None = None,
) -> nl.Message:
    """Change what is given. The kernel takes the master first and UP last."""
    mask = 0 if up is None else _IFF_UP
    body = _IFINFO.pack(0, 0, index, mask if up else 0, mask)
    if master is not None:
        body += nl.u32(_IFLA_MASTER, master)
    if alias is not None:
        body += nl.text(_IFLA_IFALIAS, alias)
    return nl.Message(nl.RTM_NEWLINK, body, what)


def hairpin(index: int, what: str) -> nl.Message:
    """Let a bridge's port send a frame back to where it came from.

    Where bridged IP passes the firewall (net.bridge.bridge-nf-call-iptables), a container's packet
    to its own published port is translated inside the bridge, and never leaves it.
    """
    body = _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0)
    body += nl.nested(_IFLA_PROTINFO, nl.u8(_IFLA_BRPORT_MODE, 1))
    return nl.Message(nl.RTM_SETLINK, body, what)


def delete(index: int, what: str) -> nl.Message:
    """Remove the interface (of a veth: both ends). Fine if it went by itself meanwhile."""
    body = _IFINFO.pack(0, 0, index, 0, 0)
    return nl.Message(nl.RTM_DELLINK, body, what, fine=(errno.ENODEV,))


def add_address(index: int, address: str) -> nl.Message:
    """Give the interface "ip/prefix", without duplicate address detection: usable at once."""
    ip, _, prefix = address.partition("/")
    family, raw = packed(ip)
    body = _IFADDR.pack(family, int(prefix), 0, 0, index)
    body += nl.attr(_IFA_LOCAL, raw) + nl.attr(_IFA_ADDRESS, raw)
    if family == socket.AF_INET6:
        body += nl.u32(_IFA_FLAGS, _IFA_F_NODAD)
    flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL
    return nl.Message(nl.RTM_NEWADDR, body, f"address {address}", flags=flags, fine=(errno.EEXIST,))


def add_default_route(index: int, gateway: str) -> nl.Message:
    """The default route of GATEWAY's family."""
    family, raw = packed(gateway)
    body = _RTMSG.pack(family, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0)
    body += nl.attr(_RTA_GATEWAY, raw) + nl.u32(_RTA_OIF, index)
    flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
    return nl.Message(nl.RTM_NEWROUTE, body, f"default route via {gateway}", flags=flags)


def addresses(sock: nl.Socket, index: int) -> list[tuple[bytes, int]]:
    """(packed address, prefix length) for each address of one interface."""
    body = _IFADDR.pack(0, 0, 0, 0, 0)
    request = nl.Message(nl.RTM_GETADDR, body, "addresses", flags=nl.NLM_F_DUMP)
    found = []
    for _, answer in sock.ask(request):
        _, prefix, _, _, owner = _IFADDR.unpack_from(answer)
        attrs = nl.parse_attrs(memoryview(answer)[_IFADDR.size :])
        raw = attrs.get(_IFA_LOCAL) or attrs.get(_IFA_ADDRESS)
        if owner == index and raw:
            found.append((raw, prefix))
    return found


def routes(sock: nl.Socket) -> list[tuple[int, bytes, int, int]]:
    """(family, packed destination, prefix length, interface index) of each unicast route.

    Those of the main table. A default route has an empty destination.
    """
    request = nl.Message(nl.RTM_GETROUTE, _RTMSG.pack(*[0] * 9), "routes", flags=nl.NLM_F_DUMP)
    found = []
    for _, answer in sock.ask(request):
        family, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(answer)
        attrs = nl.parse_attrs(memoryview(answer)[_RTMSG.size :])
        if table == _RT_TABLE_MAIN and kind == _RTN_UNICAST:
            found.append((family, attrs.get(_RTA_DST, b""), prefix, _u32(attrs.get(_RTA_OIF))))
    return found
