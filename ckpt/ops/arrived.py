"""What a migration brought here and the process that prepared it left behind: the verdict comes from another process.

The container's monitor holds it meanwhile, and the hook in which CRIU waits.
"""

from __future__ import annotations

import time

from ckpt.ops import hooks
from ckpt.ops.bringup import network_of, resources_of
from ckpt.ops.create import forget
from ckpt.ops.host import Host
from ckpt.ops.volume_arrival import keep_volumes
from runtime.container.record import Container
from runtime.control import Control
from runtime.criu.restore import Restorer
from runtime.errors import NotFound, WrongState
from runtime.files import locked
from runtime.network import host as network


def find(host: Host, migration: str) -> Container:
    """By its record: an id alone could be of a later life of it. Raises NotFound."""
    for container in host.containers():
        if container.record.origin == migration:
            return container
    raise NotFound(
        doing="looking for", target=f"what migration {migration} brought", why="it is not here"
    )


def release(host: Host, migration: str) -> int:
    """After COMMIT: let it run. Returns when it ran (ns since the epoch).

    Raises NotFound; WrongState when what was prepared is gone, as after a reboot of this host.
    """
    container = find(host, migration)
    keep_volumes(container)
    if container.status().state == "running":
        return time.time_ns()
    restorer = Restorer(
        host.criu,
        work=container.paths.run / "criu",
        programs=host.paths.programs,
        own_network=network_of(container).kind != "host",
        target=f"container {container.record.name}",
    )
    control, action = _take_over(container)
    with control, restorer:
        restorer.adopt(control, action)
        prepared = network.describe(
            network_of(container), container.record.id, root_dir=host.paths.root
        )
        host.cgroup(container).apply(resources_of(container))
        network.attach(prepared)
        network.announce(prepared, restorer.go())
    hooks.started(container)
    return restorer.resumed_ns


def _take_over(container: Container) -> tuple[Control, str]:
    """The monitor, ours to give the verdict; and the hook that waits."""
    control = Control.connect(container.paths, container.record.name)
    answer = control.call("take_over")
    if not (answer["held"] and answer["waits"]):
        control.close()
        raise WrongState(
            doing="taking over",
            target=f"container {container.record.name}",
            why="nothing waits there",
        )
    return control, str(answer["action"])


def discard(host: Host, migration: str) -> None:
    """It was not committed: leave nothing here. What isn't there is fine."""
    try:
        container = find(host, migration)
    except NotFound:
        return
    with locked(container.paths.lock, what=f"container {container.record.name}"):
        forget(host, container)
