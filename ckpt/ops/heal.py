"""A dump whose process is gone without a word: its container is made whole again.

    killed before COMMIT   CRIU's hook fails, or its stream of images: CRIU undoes what it did and lets the tasks go.
                           For an instant they may still be held and cut off (see `hold`): that is undone here
    CRIU killed as well    its guardian lets the tasks go; sockets in repair mode and the network lock stay
    killed after COMMIT    the freezer holds the tasks, whatever CRIU does: they never run again

The container's monitor sees its connection end and starts `ckpt internal abandoned`, so that this needs nobody's
attention; `ckpt recover` does the same. Everything here may be done again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

from ckpt.ops import journal
from ckpt.ops.bringup import network_of
from ckpt.ops.host import Host
from runtime import proc
from runtime.container.record import Container
from runtime.criu import aftermath
from runtime.errors import NotFound, RuntimeFault
from runtime.network import host as network

LETTING_GO = 30.0
"""Seconds for a CRIU that has lost us to undo what it did."""


def is_decided(host: Host, container: Container) -> bool:
    """Whether the container lives on elsewhere, as a journal here says."""
    found = journal.of_container(host.paths.journals, container.record.id)
    return any(map(journal.decided, found))


def release(host: Host, container: Container) -> None:
    """Let the container's tasks run and communicate, whatever a dump left on them."""
    pids: list[int] = []
    with contextlib.suppress(NotFound):
        pids = host.cgroup(container).pids()
    if not pids:
        return
    wait_untraced(pids, LETTING_GO)
    if network_of(container).kind != "host":
        aftermath.release(pids)
    with contextlib.suppress(RuntimeFault):
        network.attach(_network(host, container))
    thaw(host, container)


@contextlib.contextmanager
def stilled(host: Host, container: Container) -> Iterator[None]:
    """Around the killing of a CRIU that holds the container's tasks, and hangs.

    The kernel lets them go at once, with sockets still in repair mode, in which reading and writing are errors that a
    program would see. So the freezer takes over, and they run when that is undone.
    """
    with contextlib.suppress(RuntimeFault):
        host.cgroup(container).begin_freeze()
    try:
        yield
        if network_of(container).kind != "host":
            aftermath.release(host.cgroup(container).pids())
    finally:
        thaw(host, container)


def hold(host: Host, container: Container) -> None:
    """COMMIT is next: the tasks stand still and are cut off, whatever dies from here on. Raises if that can't be had.

    Cut off, because the kernel answers for a frozen task: it would acknowledge to a client what the copy at the
    destination has never seen, and the client would never send it again.
    """
    host.cgroup(container).begin_freeze()
    network.detach(_network(host, container))


def _network(host: Host, container: Container) -> network.Prepared:
    return network.describe(network_of(container), container.record.id, root_dir=host.paths.root)


def thaw(host: Host, container: Container) -> None:
    """Let go what the freezer holds; fine if it holds nothing."""
    with contextlib.suppress(RuntimeFault):
        host.cgroup(container).thaw()


def wait_untraced(pids: Iterable[int], limit: float) -> bool:
    """Whether within LIMIT seconds nobody traces any of PIDS any more: CRIU has let go, or is dead."""
    until = time.monotonic() + limit
    while any(map(_tracer, pids)):
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def _tracer(pid: int) -> int:
    try:
        return int(proc.status_field(pid, "TracerPid") or 0)
    except OSError:
        return 0  # it ended
