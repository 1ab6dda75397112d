"""Giving a container all it runs in, and taking it away again: cgroup, network, file systems, monitor.

`bring_up` is the common first half of start, restart and restore; whatever fails in it is undone before the error is
seen. `tear_down` is its inverse, and may be called for a container in any condition, any number of times.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ckpt.ops import hooks
from ckpt.ops.host import Host
from runtime import cgroups, launch
from runtime.container.record import Container
from runtime.control import Control, spawn_monitor
from runtime.errors import NotFound, RuntimeFault
from runtime.files import discard
from runtime.network import host as network
from runtime.network.config import NetworkConfig


def resources_of(container: Container) -> cgroups.Resources:
    return cgroups.Resources.from_oci(container.record.spec.get("linux", {}).get("resources"))


def network_of(container: Container) -> NetworkConfig:
    return NetworkConfig.from_dict(container.record.network)


class Surroundings:
    """What a container that is coming up has got so far."""

    def __init__(self, host: Host, container: Container) -> None:
        self.host = host
        self.container = container
        self.config = network_of(container)
        self.cgroup: cgroups.Cgroup
        self.prepared: network.Prepared
        self.control: Control

    @property
    def sysctls(self) -> dict[str, str]:
        return launch.network_sysctls(self.container.record.spec)

    def plug(self, pid: int) -> None:
        """Put the prepared network into the network namespace of PID, for the hooks that may add to it."""
        network.plug(self.prepared, pid, self.sysctls)
        hooks.run(self.container, hooks.AT_CREATION, status="creating", pid=pid)

    def attach(self) -> None:
        """From now on the container can be reached."""
        network.attach(self.prepared)


@contextlib.contextmanager
def bring_up(
    host: Host,
    container: Container,
    *,
    restore: dict[str, Any] | None = None,
    tmpfs: Mapping[str, int] = MappingProxyType({}),
    limits: bool = True,
) -> Iterator[Surroundings]:
    """Yields with the monitor started. An exception inside undoes everything.

    TMPFS: by key, the descriptors of those that are made and filled already.
    LIMITS: apply the resource limits now; a restore does it at its end, since CRIU works inside the cgroup.
    """
    around = Surroundings(host, container)
    with contextlib.ExitStack() as undo:
        undo.callback(tear_down, host, container)
        if restore is None:
            reset_run_state(container)
        hooks.due(container)
        container.paths.logs.mkdir(mode=0o700, exist_ok=True)
        around.cgroup = cgroups.create(host.layout, host.cgroup_parent, container.record.id)
        if limits:
            around.cgroup.apply(resources_of(container))
        around.prepared = network.prepare(
            around.config, container.record.id, root_dir=host.paths.root
        )
        plan = launch.build(
            container,
            layers=[host.layers.path(digest) for digest in container.record.layers],
            cgroup=around.cgroup,
            ended=host.command("internal", "ended", container.record.id),
            abandoned=host.command("internal", "abandoned", container.record.id),
            environment=_environment(),
            restore=restore,
            tmpfs=tmpfs,
        )
        plan["monitor_procs"] = cgroups.monitors(host.layout)
        around.control = spawn_monitor(
            container.paths, plan, container.record.name, pass_fds=tuple(tmpfs.values())
        )
        undo.callback(around.control.close)
        yield around
        undo.pop_all()


def reset_run_state(container: Container) -> None:
    """What a former life left: mount points of a monitor that is gone, sockets.

    Not its status: until the new monitor says something, the container is as it was, should we be killed now.
    """
    discard(container.paths.run)
    # overlayfs wants an empty work directory.
    discard(container.paths.rw / "work")
    (container.paths.rw / "work").mkdir(parents=True, exist_ok=True)


def tear_down(host: Host, container: Container) -> None:
    """Free what a container that isn't running any more holds of this host. Idempotent."""
    kill_monitor(container)
    network.destroy(
        network_of(container), container.record.id, root_dir=host.paths.root, keep_addresses=True
    )
    with contextlib.suppress(NotFound):
        cgroup = host.cgroup(container)
        if cgroup.exists():
            cgroup.kill()
            cgroup.remove()
    discard(container.paths.run)
    hooks.stopped(container)


def kill_monitor(container: Container) -> None:
    """End a monitor that is still there, by its pid and start time, and its init with it."""
    status = container.status()
    if status.state in ("stopped", "lost", "creating") and not status.values:
        return
    if status.state in ("created", "running", "restoring", "creating"):
        with (
            contextlib.suppress(RuntimeFault, OSError),
            Control.connect(container.paths, container.record.name) as control,
        ):
            control.call("kill", signal=int(signal.SIGKILL), timeout=5)
            control.send(op="wait")
            control.receive(10)


def _environment() -> dict[str, str]:
    """What a later process of ours on this host needs of our environment."""
    names = ("PATH", "HOME", "LANG", "CKPT_ROOT", "CKPT_CRIU", "CKPT_CRIU_PREFIX", "PYTHONPATH")
    found = {name: os.environ[name] for name in names if name in os.environ}
    found.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    found["PYTHONPATH"] = os.pathsep.join(
        filter(None, (found.get("PYTHONPATH"), *_package_roots()))
    )
    return found


def _package_roots() -> list[str]:
    from pathlib import Path

    import ckpt

    root = str(Path(ckpt.__file__).parent.parent)
    return [] if root in (os.path.join(sys.prefix, "lib"),) else [root]
