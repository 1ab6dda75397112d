"""What becomes of an interrupted migration, by the two journals alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from transport.machine import State


class Settle(StrEnum):
    """What one host does about an interrupted migration."""

    NOTHING = "nothing"
    RESUME = "resume"  # source: journal aborted, let it run
    BURY = "bury"  # source: it must never run again; kill what is left, then clean
    DISCARD = "discard"  # destination: journal aborted, leave nothing
    RELEASE = "release"  # destination: journal committed, let it run
    WAIT = "wait"  # not decidable without the other host
    PERSON = "person"  # the journals contradict each other: a person must look


@dataclass(frozen=True, slots=True)
class Decision:
    source: Settle
    destination: Settle


_BEFORE_COMMIT = frozenset(
    (State.PLANNED, State.CHECKED, State.SYNCING, State.FROZEN, State.RECEIVED, State.PREPARED)
)
_BEFORE_PREPARED = frozenset((State.CHECKED, State.RECEIVING, State.RECEIVED))
_AFTER_COMMIT = frozenset((State.COMMITTED, State.RUNNING, State.CLEANED))


def decide(source: State | None, destination: State | None) -> Decision:
    """What both hosts do, by what their journals say.

    ``None``: that host can't be asked.  ``State.NONE``: it was asked and has no such journal.
    A BURY at the source comes before a RELEASE at the destination.  Whoever asks must hold the
    lock of each journal that it read, so that nobody is still at work.
    ``recover --assume committed|aborted`` is ``decide(State.COMMITTED | State.ABORTED, …)`` with
    the source's part left undone.
    """
    if source in _AFTER_COMMIT:
        if destination in (State.RUNNING, State.CLEANED) or source is not State.COMMITTED:
            return Decision(Settle.BURY, Settle.NOTHING)
        if destination in (State.PREPARED, State.COMMITTED):
            return Decision(Settle.BURY, Settle.RELEASE)
        if destination is None:
            return Decision(Settle.BURY, Settle.WAIT)
        # It committed to something that the destination says it doesn't have.
        return Decision(Settle.PERSON, Settle.PERSON)
    if source in _BEFORE_COMMIT and destination in _AFTER_COMMIT:
        # Only `--assume committed` leads here: what runs there wins, the frozen copy here goes.
        unfinished = destination is State.COMMITTED
        return Decision(Settle.BURY, Settle.RELEASE if unfinished else Settle.NOTHING)
    if source is State.ABORTED and destination in _AFTER_COMMIT:
        return Decision(Settle.PERSON, Settle.PERSON)
    if source in _BEFORE_COMMIT or source is State.ABORTED:
        theirs = Settle.WAIT if destination is None else Settle.DISCARD
        return Decision(Settle.RESUME, Settle.NOTHING if destination is State.NONE else theirs)
    # The source can't be asked, or knows nothing of it (any more).
    if destination in _BEFORE_PREPARED or destination is State.ABORTED:
        return Decision(Settle.NOTHING, Settle.DISCARD)
    if destination is State.COMMITTED:
        return Decision(Settle.NOTHING, Settle.RELEASE)
    if destination is State.PREPARED:
        return Decision(Settle.NOTHING, Settle.WAIT if source is None else Settle.PERSON)
    return Decision(Settle.NOTHING, Settle.NOTHING)
