"""The nftables table of a bridge: NAT, published ports, and who may come in.

One table per bridge, `inet ckpt_<bridge>`, whose whole content follows from the leases: each change
writes all of it again in one transaction. So there is nothing to repair after a crash but to write
it once more, and no packet ever meets half a table. No other table is read or written.

    raw       a container can't reach the host's 127.0.0.0/8 through route_localnet (which
              published ports need)
    dstnat    from outside: destination is the host and port is published → the container
    output    the same for connections from the host itself
    srcnat    outside, containers appear as the host; inside, the host's loopback and a container
              that uses a published port do
    forward   into the bridge come answers, published ports and its own traffic, nothing else

What cannot be had: ::1 as a published address. IPv6 has no route_localnet: the kernel drops ::1 on
any other link.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from runtime import programs
from runtime.network.config import PortMapping
from runtime.network.ipam import Lease

Rule = list[dict[str, Any]]
_FAMILY = "inet"
# Chain: hook, priority (names as in nft(8): raw -300, dstnat -100, filter 0, srcnat 100), type.
_CHAINS = {
    "raw": ("prerouting", -300, "filter"),
    "dstnat": ("prerouting", -100, "nat"),
    "output": ("output", -100, "nat"),
    "forward": ("forward", 0, "filter"),
    "srcnat": ("postrouting", 100, "nat"),
}
_SECONDS = 30


def table_name(bridge: str) -> str:
    # nftables takes letters, digits, '_', '.', '/' and '\\' in a name, an interface '-' as well.
    return f"ckpt_{bridge}".replace("-", "_")


def write(bridge: str, subnets: Iterable[str], leases: Iterable[Lease]) -> None:
    """Make the table of BRIDGE what SUBNETS and the active LEASES say, in one transaction."""
    commands = ruleset(bridge, list(subnets), [lease for lease in leases if lease.active])
    _nft(commands, f"writing the firewall of bridge {bridge}")


def remove(bridge: str) -> None:
    """Remove the table of BRIDGE; fine if there is none."""
    table = {"table": {"family": _FAMILY, "name": table_name(bridge)}}
    # Added first: deleting what isn't there is an error, and old kernels have no "destroy".
    _nft([{"add": table}, {"delete": table}], f"removing the firewall of bridge {bridge}")


def _nft(commands: list[dict[str, Any]], what: str) -> None:
    document = json.dumps({"nftables": commands}).encode()
    programs.run(["nft", "-j", "-f", "-"], stdin=document, what=what, timeout=_SECONDS)


def ruleset(bridge: str, subnets: list[str], leases: list[Lease]) -> list[dict[str, Any]]:
    """The transaction as libnftables-json(5) has it."""
    table = table_name(bridge)
    commands: list[dict[str, Any]] = [{"add": {"table": {"family": _FAMILY, "name": table}}}]
    for name, (hook, priority, kind) in _CHAINS.items():
        chain = {"family": _FAMILY, "table": table, "name": name}
        base = {**chain, "type": kind, "hook": hook, "prio": priority, "policy": "accept"}
        commands += [{"add": {"chain": base}}, {"flush": {"chain": chain}}]
    for name, rules in _rules(bridge, subnets, leases).items():
        for rule in rules:
            place = {"family": _FAMILY, "table": table, "chain": name, "expr": rule}
            commands.append({"add": {"rule": place}})
    return commands


def _rules(bridge: str, subnets: list[str], leases: list[Lease]) -> dict[str, list[Rule]]:
    published = [rule for lease in leases for port in lease.ports for rule in _dnat(lease, port)]
    to_bridge = _match(_meta("oifname"), bridge)
    outside = _match(_meta("oifname"), bridge, op="!=")
    from_bridge = _match(_meta("iifname"), bridge)
    translated = _match({"ct": {"key": "status"}}, "dnat", op="in")
    answer = _match({"ct": {"key": "state"}}, ["established", "related"], op="in")
    loopback = _prefix("127.0.0.0/8")
    srcnat: list[Rule] = []
    for subnet in subnets:
        source = _source(subnet)
        srcnat.append([source, outside, {"masquerade": None}])
        srcnat.append([source, to_bridge, translated, {"masquerade": None}])
    srcnat.append(
        [_match(_payload("ip", "saddr"), loopback), to_bridge, translated, {"masquerade": None}]
    )
    return {
        "raw": [[from_bridge, _match(_payload("ip", "daddr"), loopback), {"drop": None}]],
        "dstnat": published,
        "output": published,
        "forward": [
            # Where bridged frames pass here too (net.bridge.bridge-nf-call-iptables).
            [to_bridge, from_bridge, {"accept": None}],
            [to_bridge, answer, {"accept": None}],
            [to_bridge, translated, {"accept": None}],
            [to_bridge, {"drop": None}],
        ],
        "srcnat": srcnat,
    }


def _dnat(lease: Lease, port: PortMapping) -> list[Rule]:
    """A published port: a rule for each address family that both sides have."""
    rules = []
    wanted = ipaddress.ip_address(port.host_ip) if port.host_ip else None
    # Of several addresses of a family the first one is the container's principal one.
    principal = {ip.version: ip for ip in reversed(lease.ips())}
    for version, ip in sorted(principal.items()):
        if wanted is not None and wanted.version != version:
            continue
        proto = "ip" if ip.version == 4 else "ip6"
        rule: Rule = [_match(_meta("nfproto"), "ipv4" if ip.version == 4 else "ipv6")]
        if wanted is not None and not wanted.is_unspecified:
            rule.append(_match(_payload(proto, "daddr"), str(wanted)))
        else:
            local = {"fib": {"result": "type", "flags": ["daddr"]}}
            rule.append(_match(local, "local"))
            if version == 6:
                # Refused at once is better than lost: "localhost" is ::1 first, for many clients.
                rule.append(_match(_payload(proto, "daddr"), "::1", op="!="))
        rule.append(_match(_payload(port.proto, "dport"), port.host_port))
        rule.append({"dnat": {"family": proto, "addr": str(ip), "port": port.container_port}})
        rules.append(rule)
    return rules


def _match(left: dict[str, Any], right: Any, *, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def _meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def _payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def _prefix(subnet: str) -> dict[str, Any]:
    address, _, length = subnet.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}}


def _source(subnet: str) -> dict[str, Any]:
    return _match(_payload("ip6" if ":" in subnet else "ip", "saddr"), _prefix(subnet))
