"""`ckpt recover`: finish what was interrupted, from what is on disk.

Migrations first: each side's journal says how far it came, and transport/recovery.py what follows. Then containers
whose monitor is gone without a word (a reboot, a kill): what they hold is freed, and what was wanted running is
started again. Then drafts and leases that belong to nobody.

A source whose migrating process was killed does its part by itself: see `abandoned`.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from ckpt.ops import arrived, comeback, disk, heal, lazy_recovery, lifecycle, stops, tidy, volumes
from ckpt.ops import migrate as migrating
from ckpt.ops.bringup import tear_down
from ckpt.ops.host import Host, held_container, lock_container
from ckpt.ops.journal import Entry, Journal, entries, of_container
from ckpt.ops.journal import sweep as sweep_journals
from runtime.container.record import LIVE, Container, Record
from runtime.errors import Conflict, NotFound, RuntimeFault
from runtime.files import discard, locked, sweep_unpublished
from runtime.network import host as network
from runtime.pager import privilege
from transport.errors import TransportFault
from transport.protocol import Outcome, State

Did = dict[str, Any]
_AT_REST = (State.RUNNING, State.CLEANED, State.ABORTED)
"""What a journal may say of a container that is otherwise like any other."""
SETTLING = 10.0
"""Seconds that a person's word waits for who has a journal just now: an agent that was asked, and is ending."""
REMEMBERED = 30 * 24 * 3600 * 10**9
"""Nanoseconds that a destination remembers what came here, for a source that was interrupted and asks."""


def recover(host: Host, *, only: str | None = None, assume: str | None = None) -> list[Did]:
    """Look at everything, or at migration ONLY; returns what was done, a line each."""
    host.ready()
    done: list[Did] = []
    for entry in entries(host.paths.journals):
        if only is None or entry.id == only:
            done.append(_migration(host, entry, assume, wait=SETTLING if assume else 0))
    if only is not None:
        if not done:
            raise NotFound(
                doing="recovering", target=f"migration {only}", why="there is no journal of it"
            )
        return done
    busy = {e.container for e in entries(host.paths.journals) if State(e.state) not in _AT_REST}
    for name in comeback.settle(host):
        done.append({"what": f"container {name}", "did": "its restore was cut off; undone"})
    for container in host.containers():
        if container.record.id not in busy:
            done += _container(host, container)
    done += _without_record(host)
    if privilege.recover():
        done.append({"what": "vm.unprivileged_userfaultfd", "did": "put back"})
    for name in host.store.sweep():
        done.append({"what": f"draft {name}", "did": "removed"})
    left = [*tidy.after_agents(host), *sweep_journals(host.paths.journals)]
    left += [name for folder in _published(host) for name in sweep_unpublished(folder)]
    done += [{"what": what, "did": "removed"} for what in left]
    live = {container.record.id for container in host.containers()}
    for name in volumes.sweep(host.paths, live):
        done.append({"what": f"a copy of volume {name}", "did": "removed"})
    for identity in network.sweep(live, root_dir=host.paths.root):
        done.append({"what": f"network of {identity}", "did": "released"})
    return done


def abandoned(host: Host, identity: str) -> None:
    """Called when the process that dumped a container is gone without a word, or the container has ended meanwhile.

    A migration is carried on from its journal: given up, or finished. Where the other host can't be reached from
    here, that part stays for `ckpt recover`.
    """
    for entry in of_container(host.paths.journals, identity):
        if entry.role == "source":
            _migration(host, entry, None, wait=heal.LETTING_GO)
    with (
        contextlib.suppress(NotFound, Conflict),
        held_container(host, identity, wait=heal.LETTING_GO, settled=False) as container,
    ):
        if container.status().state in LIVE and not heal.is_decided(host, container):
            heal.release(host, container)
    host.store.sweep()  # of what it had written, nobody knows but us


def _migration(host: Host, entry: Entry, assume: str | None, *, wait: float = 0) -> Did:
    what = f"migration {entry.id} ({entry.role}, {entry.state})"
    try:
        journal = Journal.load(host.paths.journals, entry.id, entry.role, wait=wait)
    except Conflict:
        return {"what": what, "did": "is under way"}
    except NotFound:
        return {"what": what, "did": "has just ended"}
    with journal:
        if entry.role == "source":
            return {"what": what, "did": _source(host, journal, assume)}
        return {"what": what, "did": _destination(host, journal, assume)}


def _source(host: Host, journal: Journal, assume: str | None = None) -> str:
    """The source's journal is the one that decides. ASSUME: of a lazy move whose destination is gone for good."""
    entry, state = journal.entry, State(journal.entry.state)
    with contextlib.ExitStack() as held:
        try:
            container = host.find(entry.container)
            held.enter_context(lock_container(container, settled=False))
        except NotFound:
            if state in (State.RUNNING, State.CLEANED):
                journal.forget()
                return "finished: it runs at the destination"
            container = _gone(host, entry)
        except Conflict as fault:
            return f"not finished: {fault}"
        migration = migrating.Migration(host, container, entry.peer)
        migration.take_over(journal)
        if entry.is_lazy and assume is not None and state is State.COMMITTED:
            return lazy_recovery.at_source(migration, journal, assume)
        stops.reached("heal")
        try:
            outcome, cause = migration.conclude(state)
        except (RuntimeFault, TransportFault, OSError) as fault:
            return f"not finished: {fault}"
    if migration.report.lost:
        return f"it is lost, killed at {entry.peer}: {migration.report.lost}"
    if outcome is Outcome.MOVED:
        return "finished: it runs at the destination"
    if outcome is Outcome.ABORTED:
        if migration.untold:
            return f"given up: it runs here; {entry.peer} could not be told: {cause}"
        return "given up: it runs here"
    if entry.is_lazy:
        return f"not finished, its memory is held here for {entry.peer}: {cause}"
    return f"not finished: {cause}"


def _gone(host: Host, entry: Entry) -> Container:
    """In place of a container that was removed since: the other host still has to hear of it."""
    record = Record(
        id=entry.container,
        name=entry.name,
        created_ns=0,
        spec={},
        layers=[],
        id_base=0,
        id_size=0,
        network={"kind": "none"},
    )
    return Container(host.paths, record)


def _destination(host: Host, journal: Journal, assume: str | None) -> str:
    state, entry = State(journal.entry.state), journal.entry
    if lost := entry.facts.get("lost"):
        if state is not State.COMMITTED:
            journal.forget()
        return (
            f"container {entry.name} is lost, it was killed: {lost}; its files are here: ckpt start"
        )
    if state is State.COMMITTED and entry.is_lazy:
        return lazy_recovery.at_destination(host, journal, assume)
    if state is State.PREPARED and assume is None:
        return (
            f"waits for the word of {entry.peer}: ckpt recover there, or here "
            "--assume committed|aborted if that host is gone for good"
        )
    if state is State.COMMITTED or (state is State.PREPARED and assume == "committed"):
        if state is State.PREPARED:
            journal.write(State.COMMITTED)
        return _run_here(host, journal)
    if state in (State.RUNNING, State.CLEANED):
        if time.time_ns() - entry.changed_ns < REMEMBERED:
            return f"it runs here; {entry.peer} has not said that it knows"
        journal.forget()
        return "was finished; forgotten"
    journal.write(State.ABORTED)
    arrived.discard(host, entry.id)
    journal.forget()
    return "given up: nothing of it is left here"


def _run_here(host: Host, journal: Journal) -> str:
    try:
        arrived.release(host, journal.entry.id)
    except NotFound:
        journal.write(State.RUNNING)
        return "it was removed here"
    except RuntimeFault as fault:
        container = arrived.find(host, journal.entry.id)
        if container.status().state in LIVE:
            return f"not finished: {fault}"
        # This host went down: the processes are lost, as those of every container here; the files are not.
        journal.write(State.RUNNING)
        return "what was prepared is lost; its files are here: ckpt start"
    journal.write(State.RUNNING)
    return "finished: it runs here"


def _container(host: Host, container: Container) -> list[Did]:
    state = container.status().state
    what = f"container {container.record.name}"
    if state in LIVE and not _cut_off(container):
        return []
    with (
        contextlib.suppress(Conflict, NotFound),
        held_container(host, container.record.id, wait=0) as container,
    ):
        if container.status().state == "creating" and not container.paths.status.exists():
            lifecycle.remove(host, container, force=True)
            return [{"what": what, "did": "was half made; removed"}]
        if container.record.wanted == "begun":
            lifecycle.remove(host, container, force=True)
            return [{"what": what, "did": "its run was cut off; removed"}]
        if _cut_off(container):
            lifecycle.start(host, container)
            return [{"what": what, "did": "its start was cut off; started"}]
        # A machine that goes down ends containers before it ends us: those count as running, too.
        cut_off = container.status().state == "stopped" and (
            lifecycle.restart_delay(container) is not None
        )
        if container.status().state == "lost" or cut_off:
            tear_down(host, container)
            return [{"what": what, "did": _start_again(host, container)}]
    return []


def _published(host: Host) -> list[Path]:
    """Directories in which files are published, but those that have a sweep of their own."""
    return [host.paths.root, host.paths.network, *(c.paths.home for c in host.containers())]


def _cut_off(container: Container) -> bool:
    """Made, and to be started by a command that may be gone: if its lock is free, it is."""
    return container.status().state == "created" and container.record.wanted in ("begun", "running")


def _start_again(host: Host, container: Container) -> str:
    """Bring back what is to run; one that fails doesn't keep others from coming back."""
    if container.record.wanted != "running" or container.record.restart["policy"] == "no":
        container.record.wanted = "stopped"
        container.save()
        return "its monitor was gone; what it held is freed"
    try:
        if comeback.chosen(container):
            return comeback.come_back(host, container)
        lifecycle.start(host, container)
    except RuntimeFault as fault:
        container.record.wanted = "running"
        container.save()
        return f"could not be started again: {fault}"
    return "started again"


def _without_record(host: Host) -> list[Did]:
    """Directories of containers that were being made, or deleted, when their process was killed."""
    done: list[Did] = []
    volatile = host.paths.run / "c"
    with host.lock():  # whoever makes one now has it, or holds the directory's own lock already
        for home in sorted(host.paths.containers.iterdir()):
            paths = host.paths.container(home.name)
            if paths.record.exists():
                continue
            with contextlib.suppress(Conflict), contextlib.ExitStack() as held:
                with contextlib.suppress(FileNotFoundError):
                    held.enter_context(locked(paths.lock, what=home.name, wait=0, make=False))
                discard(paths.run)
                disk.release(home)
                discard(home)
                done.append({"what": f"directory {home.name}", "did": "was no container; removed"})
        for left in sorted(volatile.iterdir()):
            if not host.paths.container(left.name).home.exists():
                discard(left)
                done.append({"what": f"directory {left}", "did": "was no container's; removed"})
    return done
