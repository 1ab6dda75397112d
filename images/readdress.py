"""Sockets in a checkpoint, given other addresses: for a container that comes up beside its original.

A connection needs both of its ends. The one between two sockets of the container itself goes on, with new addresses
where it had old ones; one to somebody outside belongs to the original, and becomes a socket that is not connected, as
after a reset. Listening and bound sockets get the new address in place of the old. (CRIU's own `--tcp-close` would end
the connections inside as well.)
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from images.image_file import Entry

_TCP, _CLOSE = 6, 7  # IPPROTO_TCP, TCP_CLOSE
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96


@dataclass(slots=True)
class Changes:
    """What readdress() did, for people."""

    closed: int = 0
    moved: int = 0


def readdress(entries: Iterable[Entry], addresses: Mapping[str, str]) -> Changes:
    """Put ADDRESSES (old to new, plain; none is fine) through the entries of a `files.img`, in place."""
    packed = {_pack(old): _pack(new) for old, new in addresses.items()}
    changes = Changes()
    if not packed:
        return changes
    for entry in entries:
        if "isk" in entry:
            _socket(entry["isk"], packed, changes)
    return changes


def _socket(sock: Entry, packed: Mapping[bytes, bytes], changes: Changes) -> None:
    source, peer = _read(sock.get("src_addr", [])), _read(sock.get("dst_addr", []))
    connected = sock["proto"] == _TCP and sock.get("dst_port", 0) != 0
    if connected and not _inside(peer, packed):
        # Without a destination CRIU makes a plain socket of it.
        sock["state"], sock["src_port"], sock["dst_port"] = _CLOSE, 0, 0
        sock["src_addr"] = [0] * len(sock["src_addr"])
        sock["dst_addr"] = [0] * len(sock["dst_addr"])
        changes.closed += 1
        return
    for key, address in (("src_addr", source), ("dst_addr", peer)):
        new = _translate(address, packed)
        if new != address:
            sock[key] = list(struct.unpack(f"={len(new) // 4}I", new))
            changes.moved += 1


def _inside(address: bytes, packed: Mapping[bytes, bytes]) -> bool:
    """Whether a peer is the container itself."""
    plain = address.removeprefix(_MAPPED) if len(address) == 16 else address
    return plain in packed or ipaddress.ip_address(plain).is_loopback


def _translate(address: bytes, packed: Mapping[bytes, bytes]) -> bytes:
    if len(address) == 16 and address.startswith(_MAPPED):
        return _MAPPED + packed.get(address[12:], address[12:])
    return packed.get(address, address)


def _read(words: list[int]) -> bytes:
    """CRIU keeps an address as it is in memory, in 32-bit words."""
    return struct.pack(f"={len(words)}I", *words)


def _pack(address: str) -> bytes:
    return ipaddress.ip_address(address).packed
