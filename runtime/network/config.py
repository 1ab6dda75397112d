"""What a container's network shall be: one value that travels with it, and the parsers of it.

A `NetworkConfig` is valid by construction: it may come from a command line, from a checkpoint or
from another host, and whoever holds one needs no further checks. It holds no fact about a host but
the name of an l2 bridge, so that the same value means the same network wherever the container goes.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import BadInput

KINDS = ("none", "host", "bridge", "l2")
PROTOCOLS = ("tcp", "udp")

_INTERFACE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ is 16 with the NUL
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_DOMAIN = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_MIN_MTU, _MAX_MTU = 1280, 65535  # below 1280 there is no IPv6 (RFC 8200 section 5)
# More than anybody needs; a description from outside must not make us work without end.
_MOST_ADDRESSES = 16
_MOST_PORTS = 4096
_MOST_NAMES = 64


def _bad(what: str, value: object, why: str, hint: str = "") -> BadInput:
    return BadInput(doing="reading the network's", target=f"{what} {value!r}", why=why, hint=hint)


@dataclass(frozen=True, slots=True)
class PortMapping:
    """A port of the host that leads to one of the container. HOST_IP "" is every address."""

    proto: str
    host_ip: str
    host_port: int
    container_port: int

    def __post_init__(self) -> None:
        if self.proto not in PROTOCOLS:
            raise _bad("protocol", self.proto, f"it is none of {', '.join(PROTOCOLS)}")
        if self.host_ip:
            object.__setattr__(self, "host_ip", str(_address("host address", self.host_ip)))
        for what, port in (("host port", self.host_port), ("port", self.container_port)):
            if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
                raise _bad(what, port, "a port is a number from 1 to 65535")

    def __str__(self) -> str:
        host = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        head = f"{host}:" if host else ""
        return f"{head}{self.host_port}:{self.container_port}/{self.proto}"

    def overlaps(self, other: PortMapping) -> bool:
        """Whether both want the same port of the same address."""
        if (self.proto, self.host_port) != (other.proto, other.host_port):
            return False
        mine, theirs = _listening_on(self.host_ip), _listening_on(other.host_ip)
        return any(
            a.version == b.version and (a == b or a.is_unspecified or b.is_unspecified)
            for a in mine
            for b in theirs
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: object) -> PortMapping:
        fields = _exact_fields(cls, raw, "port mapping")
        _typed(fields, {"proto": str, "host_ip": str})
        return cls(**fields)


def _listening_on(
    host_ip: str,
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    return [ipaddress.ip_address(a) for a in ([host_ip] if host_ip else ["0.0.0.0", "::"])]


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A container's network.

    ADDRESSES are "ip/prefix", GATEWAYS plain addresses (at most one per family), HOSTS extra lines
    "name=ip" for /etc/hosts. For `bridge` all of it may be empty, and `plan.resolve` fills it in;
    MAC "" and MTU 0 mean the same. BRIDGE is the shared segment's bridge for `l2`; for `bridge`
    it is the host's own affair and stays "" until resolved.
    """

    kind: str = "none"
    bridge: str = ""
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    mac: str = ""
    mtu: int = 0
    ports: tuple[PortMapping, ...] = ()
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    interface: str = "eth0"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _bad("kind", self.kind, f"it is none of {', '.join(KINDS)}")
        self._check_sizes()
        for what, name in (("bridge", self.bridge), ("interface", self.interface)):
            if (name or what == "interface") and not is_interface_name(name):
                raise _bad(what, name, "an interface has 1 to 15 letters, digits, '.', '_', '-'")
        if self.interface == "lo":
            raise _bad("interface", "lo", "that is the loopback interface's name")
        self._set("mac", _mac(self.mac) if self.mac else "")
        if self.mtu and not _MIN_MTU <= self.mtu <= _MAX_MTU:
            raise _bad("MTU", self.mtu, f"it lies between {_MIN_MTU} and {_MAX_MTU}")
        self._set("addresses", tuple(str(_interface(a)) for a in self.addresses))
        self._set("gateways", tuple(str(_address("gateway", g)) for g in self.gateways))
        self._set("dns_servers", tuple(str(_address("DNS server", d)) for d in self.dns_servers))
        for domain in self.dns_search:
            if not _DOMAIN.fullmatch(domain):
                raise _bad("search domain", domain, "it is no domain name")
        for line in self.hosts:
            _host_line(line)
        self._check_kind()
        self._check_gateways()
        self._check_ports()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_sizes(self) -> None:
        for name, most in (
            ("addresses", _MOST_ADDRESSES),
            ("gateways", 2),
            ("ports", _MOST_PORTS),
            ("dns_servers", _MOST_NAMES),
            ("dns_search", _MOST_NAMES),
            ("hosts", _MOST_NAMES),
        ):
            values = getattr(self, name)
            self._set(name, tuple(values))
            if len(values) > most:
                raise _bad(name, len(values), f"there are at most {most}")
            if len(set(values)) != len(values):
                raise _bad(name, ", ".join(map(str, values)), "one is there twice")

    def _check_kind(self) -> None:
        usage = "l2=BRIDGE,ip=ADDRESS/PREFIX"
        if self.kind == "l2":
            if not self.bridge:
                raise _bad("kind", "l2", "it needs the bridge's name", usage)
            if not self.addresses:
                raise _bad("kind", "l2", "it needs an address", usage)
        if self.kind in ("none", "host"):
            for name in ("bridge", "addresses", "gateways", "mac", "mtu"):
                if getattr(self, name):
                    raise _bad(name, getattr(self, name), f"network {self.kind} has none")
        if self.ports and self.kind != "bridge":
            why = f"network {self.kind} publishes no ports"
            raise _bad("port", str(self.ports[0]), why, "only network bridge needs it")

    def _check_gateways(self) -> None:
        networks = [_interface(a).network for a in self.addresses]
        families = []
        for text in self.gateways:
            gateway = ipaddress.ip_address(text)
            families.append(gateway.version)
            near = gateway.version == 6 and gateway.is_link_local
            if networks and not near and not any(gateway in network for network in networks):
                raise _bad("gateway", text, "it lies in none of the container's networks")
        if len(set(families)) != len(families):
            raise _bad("gateways", ", ".join(self.gateways), "there is one per address family")

    def _check_ports(self) -> None:
        wanted: dict[tuple[str, int], list[PortMapping]] = {}
        for port in self.ports:
            others = wanted.setdefault((port.proto, port.host_port), [])
            if any(port.overlaps(other) for other in others):
                raise _bad("port", str(port), "the same host port is published twice")
            others.append(port)

    @property
    def own_namespace(self) -> bool:
        """Whether the container has a network namespace of its own."""
        return self.kind != "host"

    @property
    def has_link(self) -> bool:
        """Whether there is an interface besides `lo` to plug in."""
        return self.kind in ("bridge", "l2")

    def replace(self, **changes: Any) -> NetworkConfig:
        return dataclasses.replace(self, **changes)

    def renewed(self) -> NetworkConfig:
        """The same network for another container: without what only one can have at a time."""
        if self.kind == "bridge":
            return self.replace(mac="", addresses=(), gateways=())
        return self.replace(mac="")

    def to_dict(self) -> dict[str, Any]:
        """For JSON and msgpack: lists, strings and numbers only."""
        raw = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        raw["ports"] = [port.to_dict() for port in self.ports]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in raw.items()}

    @classmethod
    def from_dict(cls, raw: object) -> NetworkConfig:
        """The inverse of `to_dict`, for data from anywhere; raises BadInput."""
        fields = _exact_fields(cls, raw, "description")
        _typed(fields, {"kind": str, "bridge": str, "mac": str, "interface": str, "mtu": int})
        for name in ("addresses", "gateways", "ports", "dns_servers", "dns_search", "hosts"):
            values = fields.get(name, [])
            if not isinstance(values, list | tuple):
                raise _bad(name, values, "a list belongs there")
            if name != "ports" and not all(isinstance(value, str) for value in values):
                raise _bad(name, values, "a list of strings belongs there")
            if len(values) > _MOST_PORTS:
                raise _bad(name, len(values), "there are too many")
            fields[name] = tuple(values)
        fields["ports"] = tuple(PortMapping.from_dict(port) for port in fields["ports"])
        return cls(**fields)


def _exact_fields(cls: Any, raw: object, what: str) -> dict[str, Any]:
    known = {f.name for f in dataclasses.fields(cls)}
    if not isinstance(raw, Mapping):
        raise _bad(what, raw, "a mapping belongs there")
    if unknown := sorted(map(str, set(raw) - known)):
        raise _bad(what, unknown[0], "unknown field")
    needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    if missing := sorted(needed - set(raw)):
        raise _bad(what, missing[0], "the field is missing")
    return dict(raw)


def _typed(fields: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        value = fields.get(name, kind())
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _bad(name, value, f"{kind.__name__} expected")


def is_interface_name(name: str) -> bool:
    """Whether the kernel would take it, and the shell and nftables too, without quoting."""
    return _INTERFACE_NAME.fullmatch(name) is not None


def _address(what: str, value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise _bad(what, value, "it is no IP address") from None
    if address.version == 6 and address.scope_id:
        raise _bad(what, value, "an address with a zone means nothing on another host")
    return address


def _interface(value: str) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    """An address that a container can have: with its prefix, unicast, no network's own."""
    if "/" not in value:
        raise _bad("address", value, "the prefix length is missing", "as in 10.0.0.5/24")
    _address("address", value.partition("/")[0])
    try:
        address = ipaddress.ip_interface(value)
    except ValueError:
        raise _bad("address", value, "it is no IP address with a prefix length") from None
    ip, network = address.ip, address.network
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback:
        raise _bad("address", value, "no interface can have it")
    if (
        address.version == 4
        and network.prefixlen < 31
        and ip
        in (
            network.network_address,
            network.broadcast_address,
        )
    ):
        raise _bad("address", value, "it is the network's own or its broadcast address")
    return address


def _mac(value: str) -> str:
    mac = value.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise _bad("MAC address", value, "six octets are needed, as in 02:00:00:00:00:05")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise _bad("MAC address", value, "it is not the address of a single interface")
    return mac


def _host_line(line: str) -> tuple[str, str]:
    name, equals, address = line.partition("=")
    if not equals or not _DOMAIN.fullmatch(name):
        raise _bad("host", line, "NAME=ADDRESS is expected")
    return name, str(_address("host's address", address))


# ---- the command line's spelling -----------------------------------------------------------------


def parse_network(text: str) -> NetworkConfig:
    """`none`, `host`, `bridge[,KEY=VALUE...]` or `l2=BRIDGE,KEY=VALUE...`; raises BadInput.

    Keys: ip=ADDRESS/PREFIX and gw=ADDRESS (both repeatable), mac=, mtu=, dns= and search=
    (repeatable), host=NAME=ADDRESS (repeatable).
    """
    head, *options = text.split(",")
    kind, equals, bridge = head.partition("=")
    if equals and kind != "l2":
        raise _bad("kind", head, "only l2 takes a bridge's name", "none, host, bridge, l2=BRIDGE")
    lists: dict[str, list[str]] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in _OPTIONS or not equals or not value:
            known = ", ".join(f"{name}=" for name in _OPTIONS)
            raise _bad("option", option, "it is none of the known ones", known)
        lists.setdefault(key, []).append(value)
    fields: dict[str, Any] = {"kind": kind, "bridge": bridge}
    for key, values in lists.items():
        name, read = _OPTIONS[key]
        if read is None:
            fields[name] = tuple(values)
        elif len(values) > 1:
            raise _bad("option", f"{key}={values[1]}", "it may be given once")
        else:
            fields[name] = read(values[0])
    return NetworkConfig(**fields)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise _bad("number", text, "a decimal number is expected")
    return int(text)


# Option: its field, and how a single value is read; None: it may be repeated.
_OPTIONS: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    "ip": ("addresses", None),
    "gw": ("gateways", None),
    "mac": ("mac", str),
    "mtu": ("mtu", _number),
    "dns": ("dns_servers", None),
    "search": ("dns_search", None),
    "host": ("hosts", None),
}


def parse_publish(text: str) -> list[PortMapping]:
    """`[ADDRESS:]HOST_PORT[-LAST]:PORT[-LAST][/tcp|udp]`, an IPv6 address in brackets.

    Ranges are as long as each other. Raises BadInput.
    """
    usage = "[ADDRESS:]HOST_PORT:PORT[/tcp|udp], as in 127.0.0.1:8080:80 or [::1]:8080:80/udp"
    rest, slash, proto = text.partition("/")
    host_ip = ""
    if rest.startswith("["):
        host_ip, bracket, rest = rest[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise _bad("port", text, "the bracket isn't closed", usage)
        if _address("host address", host_ip).version != 6:
            raise _bad("port", text, "brackets are for IPv6 addresses", usage)
        rest = rest[1:]
    parts = rest.split(":")
    if len(parts) == 3 and not host_ip:
        host_ip = parts.pop(0)
        if not host_ip:
            raise _bad("port", text, "the address is empty", usage)
    if len(parts) != 2:
        raise _bad("port", text, "host port and container port are expected", usage)
    host_ports, container_ports = (_port_range(part, text) for part in parts)
    if len(host_ports) != len(container_ports):
        raise _bad("port", text, "both ranges must have the same length")
    proto = proto if slash else "tcp"
    return [
        PortMapping(proto, host_ip, host_port, container_port)
        for host_port, container_port in zip(host_ports, container_ports, strict=True)
    ]


def _port_range(text: str, whole: str) -> range:
    first, dash, last = text.partition("-")
    start = _number(first)
    end = _number(last) if dash else start
    if end < start:
        raise _bad("port", whole, "the range runs backwards")
    if end - start >= _MOST_PORTS:
        raise _bad("port", whole, f"a range has at most {_MOST_PORTS} ports")
    return range(start, end + 1)
