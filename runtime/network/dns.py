"""The name resolution files that a container sees: /etc/resolv.conf and /etc/hosts.

They are made anew wherever the container starts or arrives, since the host's servers are the host's
affair. Given servers (`dns=`) move along.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from runtime.network.config import NetworkConfig

_HOST_FILE = Path("/etc/resolv.conf")
# Where systemd-resolved lists the real servers when the host's own file names its stub.
_BEHIND_STUB = Path("/run/systemd/resolve/resolv.conf")
_LARGEST = 64 * 1024


def resolv_conf(config: NetworkConfig) -> str:
    """The text of resolv.conf(5): the given servers, else the host's that a container can reach."""
    if config.kind == "host" and not config.dns_servers:
        return _read(_HOST_FILE)
    given = list(config.dns_servers)
    text = "" if given or config.kind == "none" else _reachable_source()
    servers = given or _servers(text)
    search = list(config.dns_search) or _search(text)
    lines = [f"search {' '.join(search)}"] if search else []
    lines += [f"nameserver {server}" for server in servers]
    lines += [line for line in text.splitlines() if line.startswith("options ")]
    if not servers:
        lines.append(
            "# No name server was given, and the host has none that a container can reach."
        )
    return "\n".join(lines) + "\n"


def hosts_file(config: NetworkConfig, hostname: str) -> str:
    """The text of hosts(5): loopback, the container's own name, the given names."""
    lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    own = [address.partition("/")[0] for address in config.addresses] or ["127.0.1.1"]
    lines += [f"{ip}\t{hostname}" for ip in own if hostname]
    for line in config.hosts:
        name, _, ip = line.partition("=")
        lines.append(f"{ip}\t{name}")
    return "\n".join(lines) + "\n"


def _reachable_source() -> str:
    text = _read(_HOST_FILE)
    return text if _servers(text) else _read(_BEHIND_STUB) or text


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST).decode(errors="replace")
    except OSError:
        return ""


def _servers(text: str) -> list[str]:
    """Name servers that are not on the host's loopback interface, which a container can't reach."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.ip_address(words[1])
        except ValueError:
            continue
        zoned = isinstance(address, ipaddress.IPv6Address) and address.scope_id
        if not address.is_loopback and not zoned:
            found.append(str(address))
    return found


def _search(text: str) -> list[str]:
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] in ("search", "domain"):
            found = words[1:]  # the last one counts, resolv.conf(5)
    return found
