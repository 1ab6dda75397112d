"""Who has which address, port and MAC on this host, in a form that survives any crash.

One file per container under `<root>/network/leases/`, written whole (temp, fsync, rename, fsync the
directory) and removed in one step, so that at every instant a lease exists or does not. There is no
other state: no counter, no bitmap, nothing that could disagree with the files. What a dead process
left behind is found by comparing the leases with the containers that exist (`sweep`).

All reading-then-writing happens under one flock on `<root>/network/lock`; the kernel drops it with
its holder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import ipaddress
import json
import logging
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import BadInput, Conflict, RuntimeFault, from_os_error
from runtime.network.config import PortMapping

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_LARGEST = 1 << 20  # bytes of a lease; one with 4096 ports has 300 KiB


@dataclass(frozen=True, slots=True)
class Lease:
    """What one container holds. PORTS are published exactly while ACTIVE."""

    container_id: str
    bridge: str
    addresses: tuple[str, ...] = ()
    mac: str = ""
    ports: tuple[PortMapping, ...] = ()
    active: bool = False
    nat: bool = False  # the bridge is ckpt's own, with a firewall table

    def ips(self) -> list[Address]:
        return [ipaddress.ip_interface(address).ip for address in self.addresses]


def check_id(container_id: str) -> str:
    """CONTAINER_ID, which is going to be a file's name; raises BadInput."""
    if not _ID.fullmatch(container_id):
        raise BadInput(
            doing="looking for the network of",
            target=repr(container_id),
            why="a container's id has letters, digits, '_', '.' and '-'",
        )
    return container_id


def directory(root_dir: str | Path) -> Path:
    return Path(root_dir) / "network"


@contextlib.contextmanager
def locked(root_dir: str | Path) -> Iterator[Leases]:
    """The leases of this root, for the time of the block with nobody else at them."""
    base = directory(root_dir)
    try:
        (base / "leases").mkdir(parents=True, exist_ok=True)
        fd = os.open(base / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise from_os_error(error, doing="locking the leases under", target=str(base)) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield Leases(base / "leases")
    finally:
        os.close(fd)


class Leases:
    """Made by `locked` only: each method reads the files and leaves them complete."""

    def __init__(self, where: Path) -> None:
        self._where = where

    def get(self, container_id: str) -> Lease | None:
        path = self._path(container_id)
        try:
            with path.open("rb") as file:
                raw = file.read(_LARGEST + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os_error(error, doing="reading the lease", target=str(path)) from error
        try:
            if len(raw) > _LARGEST:
                raise ValueError("larger than any lease")
            return _decoded(container_id, json.loads(raw))
        except (ValueError, KeyError, TypeError, RuntimeFault) as error:
            # Only outside interference gets here, as writing is atomic. An unreadable lease must
            # not keep every other container from starting; it holds nothing any more.
            log.warning("lease %s is damaged and is ignored: %s", path, error)
            return None

    def all(self) -> list[Lease]:
        names = sorted(p.name for p in self._where.iterdir() if p.suffix == ".json")
        found = [self.get(name.removesuffix(".json")) for name in names if _ID.fullmatch(name)]
        return [lease for lease in found if lease is not None]

    def put(self, lease: Lease) -> None:
        """Write the lease; the caller has made sure that nothing in it is somebody else's."""
        path = self._path(lease.container_id)
        temp = path.with_name(f".{path.name}.tmp")  # one writer at a time: we hold the lock
        raw = dataclasses.asdict(lease)
        try:
            with temp.open("w") as file:
                json.dump(raw, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temp.rename(path)
            self._sync()
        except OSError as error:
            temp.unlink(missing_ok=True)
            raise from_os_error(error, doing="writing the lease", target=str(path)) from error

    def allocate(self, bridge: str, subnet: Network, container_id: str) -> Interface:
        """A free address of SUBNET, from then on CONTAINER_ID's; raises Conflict if all are taken.

        The same container gets the same address each time if it can: the search starts at a place
        that its id names. So an address is rarely given to another container soon, whose peers
        would still have the old one in their caches.
        """
        mine = self.get(container_id) or Lease(container_id, bridge)
        if mine.bridge == bridge:
            for text in mine.addresses:
                if ipaddress.ip_interface(text).ip in subnet:
                    return ipaddress.ip_interface(text)
        taken = {ip for lease in self.all() if lease.bridge == bridge for ip in lease.ips()}
        # Out of the question: the network's own, the gateway (its first), IPv4's broadcast; and
        # of a huge IPv6 network only the first 2^32 are used.
        first, last = 2, min(subnet.num_addresses, 1 << 32) - 2
        room = last - first + 1
        digest = hashlib.sha256(container_id.encode()).digest()
        start = int.from_bytes(digest[:8], "big") % max(room, 1)
        for step in range(min(room, len(taken) + 1)):
            ip = subnet.network_address + first + (start + step) % room
            if ip not in taken:
                address = ipaddress.ip_interface((ip, subnet.prefixlen))
                kept = mine.addresses if mine.bridge == bridge else ()
                new = dataclasses.replace(mine, bridge=bridge, addresses=(*kept, str(address)))
                self.put(new)
                return address
        raise Conflict(
            doing="finding an address for",
            target=container_id,
            why=f"all {max(room, 0)} addresses of {subnet} are taken",
            hint="remove containers, or widen the subnet in network/bridge.json",
        )

    def claim(
        self, bridge: str, addresses: Collection[Interface], mac: str, container_id: str
    ) -> Lease:
        """Make exactly ADDRESSES and MAC on BRIDGE CONTAINER_ID's.

        Raises Conflict, naming the holder, if one of them is somebody else's; nothing changes then.
        """
        self.check_free(bridge, addresses, mac, container_id)
        old = self.get(container_id)
        new = dataclasses.replace(
            old or Lease(container_id, bridge),
            bridge=bridge,
            addresses=tuple(str(address) for address in addresses),
            mac=mac,
        )
        if new != old:
            self.put(new)
        return new

    def check_free(
        self, bridge: str, addresses: Collection[Interface], mac: str, container_id: str
    ) -> None:
        """Raise what `claim` would."""
        wanted = {address.ip for address in addresses}
        for lease in self.all():
            if lease.container_id == container_id or lease.bridge != bridge:
                continue
            common = sorted(map(str, wanted.intersection(lease.ips())))
            if not common and mac and lease.mac == mac:
                common = [mac]
            if common:
                raise Conflict(
                    doing="claiming address",
                    target=f"{common[0]} for {container_id}",
                    why=f"container {lease.container_id} has it",
                    hint=f"remove {lease.container_id}, or give another address",
                )

    def release(self, container_id: str) -> None:
        """Give back everything; fine if there is nothing."""
        self._path(container_id).unlink(missing_ok=True)
        self._sync()

    def sweep(self, live_ids: Collection[str]) -> list[str]:
        """Release what containers hold that aren't among LIVE_IDS; returns their ids."""
        stale = []
        for path in self._where.iterdir():
            if path.name.endswith(".tmp"):  # a writer died: it was under the lock that we hold
                path.unlink(missing_ok=True)
            elif path.suffix == ".json" and path.stem not in live_ids:
                path.unlink(missing_ok=True)
                stale.append(path.stem)
        self._sync()
        return sorted(stale)

    def _path(self, container_id: str) -> Path:
        return self._where / f"{check_id(container_id)}.json"

    def _sync(self) -> None:
        fd = os.open(self._where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _decoded(container_id: str, raw: dict[str, object]) -> Lease:
    addresses, ports = raw["addresses"], raw["ports"]
    if not isinstance(addresses, list) or not isinstance(ports, list):
        raise ValueError("lists expected")
    lease = Lease(
        container_id=container_id,
        bridge=str(raw["bridge"]),
        addresses=tuple(map(str, addresses)),
        mac=str(raw["mac"]),
        ports=tuple(PortMapping.from_dict(port) for port in ports),
        active=raw["active"] is True,
        nat=raw["nat"] is True,
    )
    lease.ips()  # raises ValueError if one is no address
    return lease
