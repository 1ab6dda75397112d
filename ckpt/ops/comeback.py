"""A container that comes back as it was: after a reboot, from its newest checkpoint.

That is its user's choice, an annotation beside its restart policy: `ckpt run --restart always --label
org.ckpt.recover=checkpoint`. What it wrote since that checkpoint, in memory and in its files, is gone then; so nobody
else gets this.

The restored one is a new container of the same name. Nothing of the old one is taken away before the new one runs:

    aside     the old one is called NAME.aside and not wanted; its addresses are free
    restore   the newest checkpoint of a container called NAME
    done      it runs: the old one is removed        failed: the old one gets its name back, and starts anew

A power cut in between leaves NAME.aside, and perhaps a NAME that doesn't live: `settle` makes one of them again.
"""

from __future__ import annotations

import contextlib

from ckpt.ops import lifecycle, restore
from ckpt.ops.bringup import network_of
from ckpt.ops.host import Host, lock_container
from images.errors import ImageFault
from runtime.container.record import LIVE, Container
from runtime.errors import Conflict, NotFound, RuntimeFault
from runtime.network import host as network

ANNOTATION = "org.ckpt.recover"
_ASIDE = ".aside"


def chosen(container: Container) -> bool:
    """Whether its user wants it back from a checkpoint."""
    return (container.record.spec.get("annotations") or {}).get(ANNOTATION) == "checkpoint"


def newest(host: Host, name: str) -> str | None:
    """The newest checkpoint of a container called NAME."""
    manifests = [(one.manifest, one.name) for one in host.store.list() if one.manifest is not None]
    found = [(m.created, title) for m, title in manifests if m.container_name == name]
    return max(found)[1] if found else None


def come_back(host: Host, container: Container) -> str:
    """Bring back CONTAINER, which is torn down and whose lock the caller holds; returns what was done.

    Raises RuntimeFault when it couldn't even be started anew.
    """
    name = container.record.name
    checkpoint = newest(host, name)
    if checkpoint is None:
        lifecycle.start(host, container)
        return "started again; there is no checkpoint of it"
    container.record.wanted = "stopped"
    lifecycle.rename(host, container, _aside(name))
    network.destroy(network_of(container), container.record.id, root_dir=host.paths.root)
    try:
        restore.from_store(host, checkpoint, name=name)
    except (RuntimeFault, ImageFault) as fault:
        _give_back(host, container, name)
        lifecycle.start(host, container)
        return f"started again; checkpoint {checkpoint} could not be restored: {fault}"
    lifecycle.remove(host, container, force=True)
    return f"restored from checkpoint {checkpoint}"


def settle(host: Host) -> list[str]:
    """Undo what a power cut interrupted; returns the names of containers that are themselves again."""
    settled = []
    for container in host.containers():
        name = container.record.name.removesuffix(_ASIDE)
        if name == container.record.name or not chosen(container):
            continue
        with contextlib.suppress(Conflict, NotFound), lock_container(container, wait=0):
            with contextlib.suppress(NotFound):
                other = host.find(name)
                if other.status().state in LIVE:
                    lifecycle.remove(host, container, force=True)
                    continue
                with lock_container(other, wait=0):
                    lifecycle.remove(host, other, force=True)
            _give_back(host, container, name)
            settled.append(name)
    return settled


def _aside(name: str) -> str:
    return f"{name[: 63 - len(_ASIDE)]}{_ASIDE}"


def _give_back(host: Host, container: Container, name: str) -> None:
    container.record.wanted = "running"
    lifecycle.rename(host, container, name)
