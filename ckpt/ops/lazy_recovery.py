"""What a person may decide about a lazy move that can't be finished.

After COMMIT the copy at the destination is the container, and needs the source until its last page has come. Nobody
but a person may give either of them up for the other: each might have acted since.

    the source is gone for good         at the destination, committed: what runs there is killed, its files stay
    the destination is gone for good    at the source, aborted: it runs on from the moment when it moved
                                        at the source, committed: what is held there is given up
    the destination is there            at the destination, aborted: gives its copy up; only then the source may
"""

from __future__ import annotations

import contextlib

from ckpt.ops import arrived, later
from ckpt.ops.host import Host
from ckpt.ops.journal import Journal
from ckpt.ops.migrate import Migration
from ckpt.ops.other_host import peer_state
from runtime.container.record import LIVE
from runtime.errors import NotFound
from transport.protocol import Outcome, State


def at_source(migration: Migration, journal: Journal, assume: str) -> str:
    """The other host never comes back, a person says, with the copy that ran there; says what was done."""
    entry = journal.entry
    if assume == "committed":
        journal.write(State.RUNNING)
        outcome, cause = migration.conclude(State.RUNNING)
        if outcome is not Outcome.MOVED:
            return f"not given up yet, ckpt recover goes on with it: {cause}"
        return f"given up: it was at {entry.peer}, and its memory that was held here is gone"
    answer = peer_state(migration.host, entry.peer, entry.id)
    if answer not in (State.NONE, State.ABORTED, None):
        return (
            f"refused: {entry.peer} is there, and has it; ckpt recover without --assume finishes it, "
            "--assume aborted there gives it up"
        )
    journal.write(State.ABORTED)
    outcome, cause = migration.conclude(State.ABORTED)
    said = "it runs here, from the moment when it moved"
    if outcome is Outcome.ABORTED and not migration.untold:
        return said
    return f"{said}; {entry.peer} could not be told: {cause}"


def at_destination(host: Host, journal: Journal, assume: str | None) -> str:
    """It may run already, and needs its source for as long as pages are missing; says how it stands."""
    entry = journal.entry
    if assume == "aborted":
        journal.write(State.ABORTED)
        arrived.discard(host, entry.id)
        journal.forget()
        return f"given up: nothing of it is left here; --assume aborted at {entry.peer} lets it run"
    if assume == "committed":
        later.lose(host, journal, f"{entry.peer} is gone for good, with pages that had not come")
        journal.write(State.RUNNING)
        return f"container {entry.name} is lost, and killed; its files are here: ckpt start"
    with contextlib.suppress(NotFound):
        if arrived.find(host, entry.id).status().state in LIVE:
            return (
                f"it is here, but part of its memory is still at {entry.peer}: ckpt recover there, or "
                "here --assume committed if that host is gone for good: that kills it"
            )
    return (
        f"container {entry.name} ended here before all of its memory had come; --assume aborted here "
        f"gives it up, then at {entry.peer} it runs on from the moment when it moved"
    )
