"""Everything that is known of a container, for inspect."""

from __future__ import annotations

import contextlib
from typing import Any

from ckpt.ops import disk
from ckpt.ops.bringup import network_of
from ckpt.ops.host import Host
from ckpt.ops.listing import summary
from runtime.container.record import Container
from runtime.errors import NotFound
from runtime.network import host as network

__all__ = ["details", "summary"]


def details(host: Host, container: Container) -> dict[str, Any]:
    """Everything that `ckpt inspect` shows."""
    status = container.status()
    found = summary(container)
    found["jobs"] = status.values.get("jobs", {})
    found["record"] = container.record.to_dict()
    found["paths"] = {
        "home": str(container.paths.home),
        "upper": str(container.paths.upper),
        "log": str(container.paths.log),
    }
    found["disk"] = disk.usage(container)
    found["network_state"] = network.state(
        network_of(container), container.record.id, root_dir=host.paths.root
    )
    found["cgroups"] = {}
    with contextlib.suppress(NotFound):
        found["cgroups"] = host.cgroup(container).paths()
    return found
