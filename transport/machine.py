"""The mechanism under ``protocol``: events, outputs, and a table that leads from one to the other.

Nothing here knows the exchange; the tables and the reasons for them are in ``protocol``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, Self

from transport.errors import (
    LinkLost,
    ProtocolFault,
    TimedOut,
    TransportFault,
    VersionMismatch,
)
from transport.messages import (
    SCHEMAS,
    Message,
    check_greeting,
    fault_fields,
    make,
    peer_fault,
)


class State(StrEnum):
    """What a journal may say."""

    NONE = "none"
    PLANNED = "planned"
    CHECKED = "checked"
    SYNCING = "syncing"
    RECEIVING = "receiving"
    FROZEN = "frozen"
    RECEIVED = "received"
    PREPARED = "prepared"
    COMMITTED = "committed"
    RUNNING = "running"
    CLEANED = "cleaned"
    ABORTED = "aborted"


class Action(StrEnum):
    """What the caller carries out.  The left column of the diagram, then the right one."""

    CHECK = "check"  # either: examine; Done's facts become preflight's or report's fields
    SYNC = "sync"  # copy what can be copied while it runs
    FREEZE = "freeze"  # stop the tasks, hand the rest to the lanes; facts: summary
    BURY = "bury"  # kill the source's tasks for good
    CLEAN = "clean"  # forget the container here
    RESUME = "resume"  # let the source's tasks run again
    RECONNECT = "reconnect"  # a new session with a new agent, with patience
    RECEIVE = "receive"  # take what comes on the lanes (goes on until VERIFY)
    BRACE = "brace"  # the frozen window has begun: start what can wait for its data
    VERIFY = "verify"  # everything arrived and is what ``sent`` said; facts: summary
    PREPARE = "prepare"  # restored, held before the first instruction
    RELEASE = "release"  # let it run and announce it
    DISCARD = "discard"  # leave nothing here
    RECALL = "recall"  # take the journal's lock and read it; facts: state


class Outcome(StrEnum):
    MOVED = "moved"  # it runs at the destination, nothing is left to do here
    ABORTED = "aborted"  # it runs at the source, nothing is left to do here
    WAITING = "waiting"  # destination: prepared, only the source's word can go on
    UNFINISHED = "unfinished"  # `ckpt recover` must go on; the cause says what hinders


# ── events ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Received:
    message: Message


@dataclass(frozen=True, slots=True)
class Done:
    action: Action
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    action: Action
    fault: Exception


@dataclass(frozen=True, slots=True)
class Lost:
    """The link to the peer is gone (or unusable: then the caller has closed it)."""

    fault: TransportFault | None = None


@dataclass(frozen=True, slots=True)
class Overdue:
    """The peer took too long where ``awaits_peer`` was true."""


@dataclass(frozen=True, slots=True)
class AbortAsked:
    """A person (or a signal, or a deadline) wants it to end."""

    fault: Exception


@dataclass(frozen=True, slots=True)
class Begin:
    """The first event of a new machine."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The first event of a machine that takes over from a journal, whose lock we hold."""

    state: State


Event = Begin | Restored | Received | Done | Failed | Lost | Overdue | AbortAsked


# ── outputs ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Journal:
    """Write ``state``; when ``durable``, be sure of the disk before the next output."""

    state: State
    durable: bool = True


@dataclass(frozen=True, slots=True)
class Send:
    message: Message


@dataclass(frozen=True, slots=True)
class Do:
    action: Action
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HangUp:
    """Close the link (no ``Lost`` comes for it)."""


@dataclass(frozen=True, slots=True)
class Finish:
    outcome: Outcome
    cause: Exception | None = None


Output = Journal | Send | Do | HangUp | Finish


@dataclass(frozen=True, slots=True)
class Say:
    """In the tables: send this type, its fields taken from the event and the machine."""

    kind: str


# What stands in the tables: a next position and what to put out on the way there.
Template = Journal | Say | Do | HangUp | Finish
Row = tuple[str, tuple[Template, ...]]
Table = Mapping[str, Mapping[str, Row]]


def key_of(event: Event) -> str:
    """The name under which an event stands in the tables."""
    match event:
        case Received(message):
            kind: str = message["type"]
            if kind == "report":
                return "report" if message["ok"] else "refusal"
            return f"status_is:{message['state']}" if kind == "status_is" else kind
        case Done(action, facts):
            if action is Action.RECALL:
                return f"done:recall:{facts['state']}"
            if action is Action.CHECK and facts.get("ok") is False:
                return "refused:check"
            return f"done:{action}"
        case Failed(action):
            return f"failed:{action}"
        case Lost():
            return "lost"
        case Overdue():
            return "overdue"
        case AbortAsked():
            return "asked"
        case Begin():
            return "begin"
        case Restored(state):
            return f"restored:{state}"


@dataclass(frozen=True, slots=True)
class Machine:
    """One role.  Immutable: ``handle`` gives the next machine and the outputs."""

    id: str
    hello: Mapping[str, Any] = field(compare=False)
    position: str = "new"
    cause: Exception | None = field(default=None, compare=False)

    TABLE: ClassVar[Table]
    STATES: ClassVar[Mapping[str, State]]
    AWAITS_PEER: ClassVar[frozenset[str]]
    FINAL: ClassVar[frozenset[str]]

    @property
    def state(self) -> State:
        """The state of the transaction (what the journal says, or is about to)."""
        return self.STATES[self.position]

    @property
    def awaits_peer(self) -> bool:
        """Only a message can bring it forward: arm the peer's deadline."""
        return self.position in self.AWAITS_PEER

    @property
    def finished(self) -> bool:
        return self.position in self.FINAL

    def handle(self, event: Event) -> tuple[Self, tuple[Output, ...]]:
        """Take one event.  Never raises for what a peer may do."""
        key = key_of(event)
        if isinstance(event, Received):
            event, key = self._screen(event, key)
        rows = self.TABLE[self.position]
        row = rows.get(key)
        if row is None and key.startswith("status_is:"):
            row = rows.get("status_is:*")
        if row is None and key.startswith("failed:"):
            row = rows.get("failed:*")
        if row is None and isinstance(event, Received):
            row = rows.get("message:*")
            if row is not None and row[0] != self.position:
                why = f"a {event.message['type']!r} message while {self.position}"
                event = Lost(_violation(why))
        if row is None:
            # Whatever the table doesn't name comes late (an action that was stopped, a link that
            # ended after its last message) and changes nothing.
            return self, ()
        return self._apply(row, event)

    def _screen(self, event: Received, key: str) -> tuple[Event, str]:
        """What no position allows: another migration's message, a greeting from elsewhen."""
        message = event.message
        named = message.get("id")
        if named is not None and self.id and named != self.id:
            fault = _violation(f"it spoke of migration {named}, this one is {self.id}")
            return Lost(fault), "message:*"
        if message["type"] == "hello":
            try:
                check_greeting(message)
            except VersionMismatch as mismatch:
                return Lost(mismatch), "message:*"
        return event, key

    def _apply(self, row: Row, event: Event) -> tuple[Self, tuple[Output, ...]]:
        position, templates = row
        machine = replace(
            self,
            position=position,
            id=self.id or _id_in(event),
            cause=self.cause or _cause_in(event),
        )
        return machine, tuple(machine._fill(template, event) for template in templates)

    def _fill(self, template: Template, event: Event) -> Output:
        match template:
            case Say(kind):
                return Send(self._message(kind, event))
            case Do(action, facts):
                return Do(action, facts or _facts_in(event))
            case Finish(Outcome.MOVED):
                return template
            case Finish(Outcome.UNFINISHED):
                # What failed now hinders the end, not what began it.
                return Finish(Outcome.UNFINISHED, _cause_in(event) or self.cause)
            case Finish(outcome):
                return Finish(outcome, self.cause)
            case _:
                return template

    def _message(self, kind: str, event: Event) -> Message:
        if kind == "hello":
            return dict(self.hello)
        if kind in ("abort", "fault"):
            cause = self.cause or _violation("no reason known")
            return make(kind, **fault_fields(cause))
        facts = _facts_in(event) if isinstance(event, Done) else {}
        schema = SCHEMAS[kind]
        fields = {name: value for name, value in facts.items() if name in schema}
        if "id" in schema:
            fields["id"] = self.id
        if kind == "status_is":
            fields |= {"role": "destination", "state": str(self.state)}
        return make(kind, **fields)


def _violation(why: str) -> ProtocolFault:
    return ProtocolFault(doing="following", target="the peer", why=f"unexpected: {why}")


def _id_in(event: Event) -> str:
    return str(event.message.get("id", "")) if isinstance(event, Received) else ""


def _facts_in(event: Event) -> Mapping[str, Any]:
    if isinstance(event, Received):
        return {name: value for name, value in event.message.items() if name != "type"}
    return event.facts if isinstance(event, Done) else {}


def _cause_in(event: Event) -> Exception | None:
    match event:
        case Received(message) if message["type"] in ("abort", "fault"):
            return peer_fault(message)
        case Received({"type": "report", "ok": False}):
            return None  # the findings say it better; the caller has them
        case Failed(_, fault) | AbortAsked(fault):
            return fault
        case Lost(fault):
            return fault or LinkLost(
                doing="talking to", target="the peer", why="the link was lost", retry=True
            )
        case Overdue():
            return TimedOut(
                doing="waiting for", target="the peer", why="no answer in time", retry=True
            )
        case _:
            return None
