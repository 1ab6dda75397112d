"""start, stop, kill, wait, rm, rename; and what happens when a container has ended."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from typing import Any

from ckpt.ops import disk, hooks, volumes
from ckpt.ops.bringup import bring_up, network_of, tear_down
from ckpt.ops.host import Host, held_container
from runtime.container.record import LIVE, Container, check_free, check_name
from runtime.control import Control
from runtime.errors import (
    BadInput,
    Conflict,
    NotFound,
    RuntimeFault,
    SystemFault,
    TimedOut,
    WrongState,
)
from runtime.files import discard
from runtime.monitor.status import STARTER_GONE
from runtime.network import host as network

log = logging.getLogger(__name__)

GOOD_RUN = 10
"""Seconds."""


_FOR_EVER = float("inf")


def build(host: Host, container: Container) -> None:
    """Bring it up as far as "created": everything is there, its process waits."""
    disk.lift(container)
    with bring_up(host, container) as around:
        answer = around.control.expect(60.0, doing="creating")
        disk.enforce(container)
        pid = int(answer["pid"])
        around.plug(pid)
        around.attach()
        # Neighbours may remember another MAC for this address, of a container that had it before.
        network.announce(around.prepared, pid)
        around.control.send(op="go")
        around.control.expect(60.0, doing="creating")
    around.control.close()


def start(host: Host, container: Container) -> None:
    """Start what is created, or bring up again what is stopped. The caller holds the container's lock."""
    status = container.require("created", "stopped", "lost", doing="starting")
    if status.state != "created":
        tear_down(host, container)
        build(host, container)
    container.record.wanted = "running"
    container.save()
    with Control.connect(container.paths, container.record.name) as control:
        control.send(op="start")
        try:
            control.expect(60.0, doing="starting")
            hooks.started(container)
        except WrongState:
            # "cannot execute": the monitor is ending; wait for it, so that nothing is left behind.
            with contextlib.suppress(SystemFault, TimedOut):
                while True:
                    control.receive(10)
            container.record.wanted = "stopped"
            container.save()
            raise


def stop(
    host: Host, container: Container, *, grace: float = 10.0, number: int = signal.SIGTERM
) -> None:
    """Ask it to end with signal NUMBER; after GRACE seconds kill it. Stopping what is stopped is no error."""
    if container.record.wanted != "stopped":
        container.record.wanted = "stopped"
        container.save()
    with contextlib.ExitStack() as stack:
        if container.status().state in LIVE:
            with contextlib.suppress(WrongState, SystemFault):  # it has ended meanwhile
                stack.enter_context(_ending(container, grace, number))
        tear_down(host, container)


@contextlib.contextmanager
def _ending(container: Container, grace: float, number: int) -> Iterator[None]:
    """End it. Inside, all that it held is the caller's to free; if the caller dies there, its monitor sees to that."""
    with (
        Control.connect(container.paths, container.record.name) as waiting,
        Control.connect(container.paths, container.record.name) as asking,
    ):
        asking.call("care")
        waiting.send(op="wait")
        if container.status().state == "created":
            # Its process has no handler yet, and pid 1 ignores what it has none for.
            number = signal.SIGKILL
        # Without waiting for the answer: it may end before it comes.
        asking.send(op="kill", signal=int(number))
        try:
            waiting.receive(grace)
        except TimedOut:
            asking.send(op="kill", signal=int(signal.SIGKILL))
            waiting.receive(30.0)
        yield
        with contextlib.suppress(SystemFault):
            asking.send(op="done")


def kill(container: Container, number: int) -> None:
    """Send a signal to its first process."""
    container.require(*LIVE, doing="signalling")
    with Control.connect(container.paths, container.record.name) as control:
        control.call("kill", signal=number)


def wait(container: Container, job: int = 0, timeout: float | None = None) -> dict[str, Any]:
    """The end of a container or job: {exit_code, signal, ...}. Waits for it."""
    with (
        contextlib.suppress(WrongState, SystemFault),
        Control.connect(container.paths, container.record.name) as control,
    ):
        control.send(op="wait", job=job)
        answer = control.receive(timeout)
        if "ended" in answer:
            ended: dict[str, Any] = answer["ended"]
            return ended
    status = container.status()
    values = status.values.get("jobs", {}).get(str(job)) if job else status.values
    if not values or values.get("exit_code") is None:
        raise NotFound(
            doing="waiting for",
            target=f"job {job} of {container.record.name}" if job else container.record.name,
            why="it never ran, or its end is not known",
        )
    return {key: values.get(key) for key in ("exit_code", "signal", "oom_killed", "reason")}


def remove(host: Host, container: Container, *, force: bool = False) -> None:
    """Delete it with everything it wrote. What is running is refused, unless FORCE."""
    if container.status().state in LIVE and not force:
        raise WrongState(
            doing="removing",
            target=f"container {container.record.name}",
            why=f"it is {container.status().state}",
            hint=f"ckpt stop {container.record.name}, or rm --force",
        )
    stop(host, container, grace=0.0, number=signal.SIGKILL)
    network.destroy(network_of(container), container.record.id, root_dir=host.paths.root)
    volumes.take_back(host.paths, container.record, host.containers())
    disk.release(container.paths.home)
    # The record goes first: a half-deleted container must not look like a whole one.
    container.paths.record.unlink(missing_ok=True)
    discard(container.paths.home)


def remove_quietly(host: Host, name: str) -> None:
    """For --rm: it may be gone already, since its monitor sees to that too."""
    with contextlib.suppress(NotFound), held_container(host, name) as container:
        remove(host, container, force=True)


def rename(host: Host, container: Container, name: str) -> None:
    check_name(name)
    with host.lock():
        if container.record.name != name:
            check_free(host.paths, name)
            container.record.name = name
            container.save()


def ended(host: Host, identity: str) -> None:
    """Called by the monitor, as its last act: free what it held; start again or delete, as its record says."""
    # NotFound: somebody removed it meanwhile. A migration or dump before us may take as long as it likes.
    # Conflict: it lives on at another host, as a migration's journal says.
    with contextlib.suppress(NotFound, Conflict):
        with held_container(host, identity, wait=_FOR_EVER, settled=False) as container:
            if container.status().state in LIVE:
                return  # somebody started it meanwhile
            tear_down(host, container)
            if container.record.remove or never_made(container):
                remove(host, container, force=True)
                return
        _restart(host, container)


def never_made(container: Container) -> bool:
    """Whether its `create` was killed halfway, or its restore failed: nobody has heard of this container yet."""
    values = container.status().values
    return bool(values.get("unborn")) or (
        container.record.wanted in ("created", "begun") and values.get("reason") == STARTER_GONE
    )


def _restart(host: Host, container: Container) -> None:
    """Start it again as its policy says, and once more should that fail. Raises NotFound when it is removed."""
    while True:
        delay = restart_delay(container)
        if delay is None:
            return
        time.sleep(delay)
        with held_container(host, container.record.id) as container:
            if container.record.wanted != "running" or container.status().state in LIVE:
                return  # somebody stopped or started it meanwhile
            container.record.restarts += 1
            container.save()
            try:
                start(host, container)
                return
            except RuntimeFault as fault:
                log.error("restarting container %s: %s", container.record.name, fault)
                container.record.wanted = "running"
                container.save()


def restart_delay(container: Container) -> float | None:
    """Seconds until it is to be started again; None: not at all. Doubles from 0.1 s to a minute.

    A container that ran for GOOD_RUN seconds is taken as well, and the count begins anew.
    """
    record = container.record
    values = container.status().values
    policy = record.restart["policy"]
    ran = values.get("ended_ns", 0) - values.get("started_ns", 0)
    if record.restarts and values.get("started_ns") and ran > GOOD_RUN * 10**9:
        record.restarts = 0
        container.save()
    if (
        policy == "no"
        or record.wanted != "running"
        or values.get("reason", "").startswith("checkpoint")
    ):
        return None
    if policy == "on-failure":
        if values.get("exit_code") == 0:
            return None
        if record.restart["max"] and record.restarts >= record.restart["max"]:
            return None
    return float(min(60.0, 0.1 * 2 ** min(record.restarts, 10)))


def parse_restart(text: str) -> dict[str, Any]:
    """`no`, `always`, `on-failure` or `on-failure:N`."""
    policy, _, most = text.partition(":")
    if policy not in ("no", "always", "on-failure") or (most and policy != "on-failure"):
        raise BadInput(
            doing="reading",
            target=f"restart policy {text!r}",
            why="it is no, on-failure[:N] or always",
        )
    if most and not most.isdigit():
        raise BadInput(doing="reading", target=f"restart policy {text!r}", why="N is a number")
    return {"policy": policy, "max": int(most or 0)}
