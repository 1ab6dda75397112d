"""`ckpt recover`: finish what was interrupted, from what is on disk.

Migrations first: each side's journal says how far it came, and transport/recovery.py what follows. Then containers
whose monitor is gone without a word (a reboot, a kill): what they hold is freed, and what was wanted running is
started again. Then drafts and leases that belong to nobody.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ckpt.ops import arrival, lifecycle
from ckpt.ops import migrate as migrating
from ckpt.ops.bringup import tear_down
from ckpt.ops.host import Host, lock_container
from ckpt.ops.journal import Entry, Journal, entries
from runtime.container.record import Container
from runtime.errors import Conflict, NotFound, RuntimeFault
from runtime.network import host as network
from transport.errors import TransportFault
from transport.protocol import Outcome, State

Did = dict[str, Any]


def recover(host: Host, *, only: str | None = None, assume: str | None = None) -> list[Did]:
    """Look at everything, or at migration ONLY; returns what was done, a line each."""
    host.ready()
    done: list[Did] = []
    for entry in entries(host.paths.journals):
        if only is None or entry.id == only:
            done.append(_migration(host, entry, assume))
    if only is not None:
        if not done:
            raise NotFound(
                doing="recovering", target=f"migration {only}", why="there is no journal of it"
            )
        return done
    busy = {entry.container for entry in entries(host.paths.journals)}
    for container in host.containers():
        if container.record.id not in busy:
            done += _container(host, container)
    for name in host.store.sweep():
        done.append({"what": f"draft {name}", "did": "removed"})
    swept = host.layers.sweep()
    if swept:
        done.append({"what": f"{swept} half-made layers", "did": "removed"})
    live = {container.record.id for container in host.containers()}
    for identity in network.sweep(live, root_dir=host.paths.root):
        done.append({"what": f"network of {identity}", "did": "released"})
    return done


def _migration(host: Host, entry: Entry, assume: str | None) -> Did:
    what = f"migration {entry.id} ({entry.role}, {entry.state})"
    try:
        journal = Journal.load(host.paths.journals, entry.id, entry.role)
    except Conflict:
        return {"what": what, "did": "is under way"}
    with journal:
        if entry.role == "source":
            return {"what": what, "did": _source(host, journal)}
        return {"what": what, "did": _destination(host, journal, assume)}


def _source(host: Host, journal: Journal) -> str:
    """The source's journal is the one that decides."""
    state = State(journal.entry.state)
    try:
        container = host.find(journal.entry.container)
    except NotFound:
        journal.forget()
        return "the container is gone; forgotten"
    migration = migrating.Migration(host, container, journal.entry.peer)
    migration.take_over(journal)
    try:
        outcome, cause = migration.conclude(state)
    except (RuntimeFault, TransportFault) as fault:
        return f"not finished: {fault}"
    if outcome is Outcome.MOVED:
        return "finished: it runs at the destination"
    if outcome is Outcome.ABORTED:
        journal.forget()
        return "given up: it runs here"
    return f"not finished: {cause}"


def _destination(host: Host, journal: Journal, assume: str | None) -> str:
    state = State(journal.entry.state)
    identity = journal.entry.container
    if state is State.PREPARED and assume is None:
        return (
            "waits for the source's word; ckpt recover there, or here "
            "--assume committed|aborted if it is gone for good"
        )
    if state is State.COMMITTED or (state is State.PREPARED and assume == "committed"):
        if state is State.PREPARED:
            journal.write(State.COMMITTED)
        try:
            arrival.release_held(host, identity)
        except RuntimeFault as fault:
            return f"not finished: {fault}"
        journal.write(State.RUNNING)
        return "finished: it runs here"
    if state in (State.RUNNING, State.CLEANED):
        journal.forget()
        return "was finished; forgotten"
    journal.write(State.ABORTED)
    arrival.discard_held(host, identity)
    journal.forget()
    return "given up: nothing of it is left here"


def _container(host: Host, container: Container) -> list[Did]:
    state = container.status().state
    what = f"container {container.record.name}"
    if state in lifecycle.LIVE:
        return []
    with contextlib.suppress(Conflict), lock_container(container):
        container = host.find(container.record.id)
        if container.status().state == "creating" and not container.paths.status.exists():
            lifecycle.remove(host, container, force=True)
            return [{"what": what, "did": "was half made; removed"}]
        if container.status().state == "lost":
            tear_down(host, container)
            if container.record.wanted == "running" and container.record.restart["policy"] != "no":
                lifecycle.start(host, container)
                return [{"what": what, "did": "started again"}]
            container.record.wanted = "stopped"
            container.save()
            return [{"what": what, "did": "its monitor was gone; what it held is freed"}]
    return []
