"""`ckpt doctor`: what a host can do, asked of the host itself.

Every probe does the thing (makes the namespace, mounts the overlay, writes the firewall's table) in a child with which
all of it goes away, rather than to read a version or a configuration. Together they take about a second, and leave
nothing behind. A file per group:

    row       one line of the table
    kernel    release, namespaces, capabilities, seccomp, ptrace, memory tracking
    criu      CRIU, pycriu, the compiler of the containers' init
    cgroups   layout, controllers, freezer
    files     the root's file system, idmapped mounts, overlayfs, space
    network   nftables, links, IPv6, forwarding
    login     SSH client, keys, known hosts
    cures     what `--fix` does
    remote    the same at another host
"""

from __future__ import annotations

from collections.abc import Iterable

from ckpt.ops.doctor import cgroups, criu, files, kernel, login, network
from ckpt.ops.doctor.cures import Cured, cure
from ckpt.ops.doctor.remote import examine_host
from ckpt.ops.doctor.row import Probe, Row, asked
from ckpt.ops.host import Host

__all__ = ["Cured", "Row", "cure", "examine", "examine_host", "healthy"]


def examine(host: Host) -> list[Row]:
    """A row for each probe, in the table's order; never raises because of what a probe finds."""
    probes: dict[str, Probe] = {
        **kernel.probes(),
        **criu.probes(host),
        **cgroups.probes(host),
        **files.probes(host),
        **network.probes(),
        **login.probes(host),
    }
    return [asked(name, probe) for name, probe in probes.items()]


def healthy(rows: Iterable[Row]) -> bool:
    """Whether containers can be run, dumped and restored."""
    return all(row.level != "bad" for row in rows)
