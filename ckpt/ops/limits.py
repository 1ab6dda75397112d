"""`ckpt update` and `ckpt stats`."""

from __future__ import annotations

from typing import Any

from ckpt.ops import disk
from ckpt.ops.bringup import resources_of
from ckpt.ops.host import Host, held_container
from runtime import cgroups
from runtime.container.record import Container
from runtime.spec import Options, from_flags


def update(host: Host, name: str, flags: dict[str, Any]) -> None:
    """Change limits: of the running container at once, and in its record for its next start and its moves."""
    spec = from_flags(Options(args=("true",), **flags))
    wanted = spec.get("linux", {}).get("resources", {})
    wanted.pop("devices", None)
    change = cgroups.Resources.from_oci(wanted)
    cgroups.require(host.layout, change)
    with held_container(host, name) as container:
        merged = resources_of(container).merged(change)
        with disk.changed(container, spec):
            if container.status().state in ("created", "running"):
                host.cgroup(container).update(change)
            container.record.spec.setdefault("linux", {})["resources"] = merged.to_oci()
            container.save()


def stats(host: Host, container: Container) -> dict[str, Any]:
    """The counters of a container's cgroup."""
    container.require("created", "running", doing="measuring")
    found = host.cgroup(container).stats().as_dict()
    return {"name": container.record.name, "id": container.record.id, **found}
