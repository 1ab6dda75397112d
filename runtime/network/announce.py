"""Tells a segment that an address has a new place: gratuitous ARP, neighbour advertisements.

Two things are out of date after a move. Switches know behind which port a MAC lies, and learn it
from any frame that comes from it; hosts may know another MAC for an address (when the container
came back with another one). Both are cured by frames that leave through the container's own
interface. A frame may be lost, so they are repeated for a second. Raw frames, because inside the
container's namespace we have a socket, but start no program.

ARP: RFC 5227 section 3, RFC 826. Neighbour advertisement: RFC 4861 sections 4.4 and 7.2.6. MLDv2:
RFC 3810; switches that snoop multicast would otherwise keep neighbour solicitations from the new
port until the next general query.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time

from runtime.network import links, plug
from runtime.network import netlink as nl

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading

# Seconds after the start at which the frames go out. The first one counts; the dense row after it
# is for a bridge port that is not forwarding yet, the last ones for a lossy network.
TIMES = (0.0, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)

_BROADCAST = b"\xff" * 6
_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_ARP = struct.Struct("!HHBBH")
_ARP_REQUEST, _ARP_REPLY = 1, 2
_ICMPV6 = 58
_NEIGHBOUR_ADVERTISEMENT = 136
_MLD2_REPORT = 143
_OVERRIDE = 0x20000000
_TARGET_LINK_ADDRESS = 2
_CHANGE_TO_EXCLUDE = 4


def frames(mac: str, ips: list[str]) -> list[bytes]:
    """The Ethernet frames that announce IPS at MAC."""
    raw_mac = links.mac_bytes(mac)
    found = []
    for ip in ips:
        family, raw = links.packed(ip)
        if family == socket.AF_INET:
            # Both forms: some systems take only the one, some only the other.
            found += [_gratuitous_arp(raw_mac, raw, op) for op in (_ARP_REQUEST, _ARP_REPLY)]
        else:
            found += [_unsolicited_na(raw_mac, raw), _mld_report(raw_mac, raw)]
    return found


def _gratuitous_arp(mac: bytes, ip: bytes, operation: int) -> bytes:
    target = bytes(6) if operation == _ARP_REQUEST else _BROADCAST
    body = _ARP.pack(1, 0x0800, 6, 4, operation) + mac + ip + target + ip
    return _BROADCAST + mac + struct.pack("!H", _ETH_ARP) + body


def _unsolicited_na(mac: bytes, ip: bytes) -> bytes:
    all_nodes = bytes.fromhex("ff02" + "00" * 13 + "01")
    option = struct.pack("!BB", _TARGET_LINK_ADDRESS, 1) + mac
    body = struct.pack("!I", _OVERRIDE) + ip + option
    return _icmpv6_frame(mac, ip, all_nodes, _NEIGHBOUR_ADVERTISEMENT, body)


def _mld_report(mac: bytes, ip: bytes) -> bytes:
    """ "I listen to the solicited-node group of IP", sent to all MLDv2 routers."""
    group = bytes.fromhex("ff02" + "00" * 9 + "01ff") + ip[13:]
    routers = bytes.fromhex("ff02" + "00" * 13 + "16")
    record = struct.pack("!BBH", _CHANGE_TO_EXCLUDE, 0, 0) + group
    body = struct.pack("!HH", 0, 1) + record
    router_alert = struct.pack("!BBHHBB", _ICMPV6, 0, 0x0502, 0, 1, 0)
    # RFC 3810 section 5.2.13 wants a link-local source; the unspecified address is allowed too.
    return _icmpv6_frame(mac, bytes(16), routers, _MLD2_REPORT, body, router_alert)


def _icmpv6_frame(
    mac: bytes, source: bytes, group: bytes, kind: int, body: bytes, options: bytes = b""
) -> bytes:
    head = struct.pack("!BBH", kind, 0, 0)
    size = len(head) + len(body)
    pseudo = source + group + struct.pack("!II", size, _ICMPV6)
    head = struct.pack("!BBH", kind, 0, _checksum(pseudo + head + body))
    next_header, hops = (0, 1) if options else (_ICMPV6, 255)
    ip = struct.pack("!IHBB", 6 << 28, len(options) + size, next_header, hops) + source + group
    ethernet = b"\x33\x33" + group[12:] + mac + struct.pack("!H", _ETH_IPV6)
    return ethernet + ip + options + head + body


def _checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Announcer:
    """Sends the frames from inside a container's namespace, for a caller that has its own clock.

    Such a caller (the monitor's loop) calls `send` at TIMES; others use `announce`.
    """

    def __init__(self, prepared: plug.Prepared, pid: int) -> None:
        """Raises OSError if the process or its interface is gone."""
        self._frames = frames(prepared.mac, [a.partition("/")[0] for a in prepared.addresses])
        with plug.inside_of(pid), nl.Socket() as netlink:
            link = links.find(netlink, prepared.interface)
            if link is None:
                raise OSError(f"no interface {prepared.interface} in the namespace of {pid}")
            # Protocol 0: it receives nothing, so that neither binding nor closing has to wait.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._to = (prepared.interface, 0)
        try:
            self._socket.bind(self._to)
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Announcer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self) -> None:
        """One round of frames. What can't be sent now is the next round's."""
        for frame in self._frames:
            with contextlib.suppress(OSError):
                self._socket.send(frame)


def announce(prepared: plug.Prepared, pid: int) -> threading.Thread | None:
    """Announce the container's addresses at once, and again for a second from a thread.

    A program that would end sooner may join the thread. Does nothing for the kinds without a link.
    Raises nothing: that the container has left again is no failure of the move.
    """
    if not prepared.host_end or not prepared.addresses:
        return None
    # These two are 2 MiB that the monitor does without: it calls Announcer itself.
    import logging
    import threading

    try:
        announcer = Announcer(prepared, pid)
    except Exception as error:
        logging.getLogger(__name__).warning(
            "could not announce the addresses of %s: %s", prepared.container_id, error
        )
        return None
    announcer.send()
    name = f"announce-{prepared.container_id}"
    thread = threading.Thread(target=_repeat, args=(announcer,), name=name, daemon=True)
    thread.start()
    return thread


def _repeat(announcer: Announcer) -> None:
    start = time.monotonic()
    with announcer:
        for at in TIMES[1:]:
            time.sleep(max(0.0, start + at - time.monotonic()))
            announcer.send()
