"""The migration transaction: who may run the container, whatever fails.

Pure: events in, a new machine and outputs out.  No clock, no socket, no file.  The caller carries
the outputs out **in their order** and feeds back what happened.

    source                                            destination
    ──────                                            ───────────
    planned ─────────── hello ──────────────────────▶
            ◀────────── hello ───────────────────────
            ─────────── preflight ──────────────────▶ CHECK
            ◀────────── report ────────────────────── checked
    syncing ─────────── sync_begin ─────────────────▶ receiving, RECEIVE
    SYNC    ═══════════ lanes: layers, memory ══════▶
    frozen  ─────────── freeze ─────────────────────▶ BRACE
    FREEZE  ═══════════ lanes: metadata, rest ══════▶
            ─────────── sent {counts, digests} ─────▶ VERIFY
            ◀────────── received ──────────────────── received, PREPARE
            ◀────────── prepared ──────────────────── prepared
    committed, BURY     ← the one moment of decision
            ─────────── go ─────────────────────────▶ committed, RELEASE
    running ◀────────── running ───────────────────── running
    CLEAN, cleaned ──── cleaned ────────────────────▶ cleaned

Small letters are journal entries, CAPITALS are actions that the caller carries out.

Why no interleaving gives two running copies
    The decision is one durable record in the source's journal, and nobody else decides.  The
    source writes ``committed`` only after ``prepared`` arrived, sends ``go`` only after that
    record is on disk and its tasks stand still for good, and the destination runs only after
    ``go``.  The source resumes only from a state before ``committed`` and writes ``aborted``
    first.

Why none gives no copy at all
    A destination that said ``prepared`` doesn't discard by itself: only the source's own word
    (``abort``, or its journal) allows it.  Before ``prepared`` the source cannot have committed,
    so discarding is safe.  After ``committed`` neither end has a way back: the source reconnects
    and asks, the destination keeps what it holds and tries again.

What the caller owes to make this true
    - carry outputs out in order, each finished before the next (a ``Do`` is finished when the
      action was started; its end comes back as ``Done`` or ``Failed``);
    - ``Journal(durable=True)`` is on disk (fsync of file and directory) when it returns;
    - one owner per journal: a lock that dies with its holder;
    - RESUME, BURY, RELEASE, DISCARD and CLEAN may come twice and may find their work done; RESUME
      and DISCARD first stop whatever other action is under way;
    - from the ``committed`` record to their death the source's tasks stay frozen even if the
      migrating process dies: hold them by something that outlives it.  BURY may kill them, or
      leave that to CLEAN, for which nobody waits;
    - what is prepared at the destination outlives the agent: hold it likewise.

A lazy move is this exchange, with a RELEASE that is done when every page has arrived; until then
the tasks are held, for the pages in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transport.machine import (
    AbortAsked,
    Action,
    Begin,
    Do,
    Done,
    Event,
    Failed,
    Finish,
    HangUp,
    Journal,
    Lost,
    Machine,
    Outcome,
    Output,
    Overdue,
    Received,
    Restored,
    Row,
    Say,
    Send,
    State,
    Table,
    Template,
)
from transport.recovery import Decision, Settle, decide

__all__ = [
    "AbortAsked",
    "Action",
    "Begin",
    "Decision",
    "Destination",
    "Do",
    "Done",
    "Event",
    "Failed",
    "Finish",
    "HangUp",
    "Journal",
    "Lost",
    "Outcome",
    "Output",
    "Overdue",
    "Received",
    "Restored",
    "Send",
    "Settle",
    "Source",
    "State",
    "decide",
]

_MOVED = Finish(Outcome.MOVED)
_ABORTED = Finish(Outcome.ABORTED)
_WAITING = Finish(Outcome.WAITING)
_UNFINISHED = Finish(Outcome.UNFINISHED)


def _row(position: str, *outputs: Template) -> Row:
    return position, outputs


def _names(text: str) -> list[str]:
    return text.split()


def _rows(keys: str, row: Row) -> dict[str, Row]:
    return dict.fromkeys(keys.split(), row)


# ── the source ────────────────────────────────────────────────────────────────────────────────

_RESUME = (Journal(State.ABORTED), Do(Action.RESUME))
_TELL_AND_RESUME = (Journal(State.ABORTED), Say("abort"), Do(Action.RESUME))

# Before the destination holds anything, nobody needs to hear more than a word.
_SOURCE_EARLY = {
    **_rows("abort refusal lost", _row("resume_quiet", *_RESUME)),
    **_rows(
        "failed:* refused:check overdue asked message:*",
        _row("resume_quiet", *_TELL_AND_RESUME),
    ),
}
# Later it might be prepared, and must hear that it may discard: wait for its answer, and when the
# link is lost, tell it over another one.
_SOURCE_LATE = {
    "abort": _row("resume", *_RESUME),
    "lost": _row("resume_cut", *_RESUME),
    **_rows("failed:* overdue asked message:*", _row("resume", *_TELL_AND_RESUME)),
}

_RECONNECT = Do(Action.RECONNECT)

_SOURCE: Table = {
    "new": {
        "begin": _row("greet", Journal(State.PLANNED), Say("hello")),
        **_rows(
            "restored:planned restored:checked restored:syncing restored:frozen "
            "restored:received restored:prepared",
            _row("resume_cut", *_RESUME),
        ),
        "restored:aborted": _row("resume_cut", Do(Action.RESUME)),
        "restored:committed": _row("bury_cut", Do(Action.BURY)),
        "restored:running": _row("clean", Do(Action.CLEAN)),
        "restored:cleaned": _row("cleaned", _MOVED),
    },
    "greet": {"hello": _row("check", Do(Action.CHECK)), **_SOURCE_EARLY},
    "check": {"done:check": _row("ask", Say("preflight")), **_SOURCE_EARLY},
    "ask": {
        "report": _row("sync", Journal(State.SYNCING, False), Say("sync_begin"), Do(Action.SYNC)),
        **_SOURCE_EARLY,
    },
    "sync": {
        "done:sync": _row("freeze", Journal(State.FROZEN), Say("freeze"), Do(Action.FREEZE)),
        **_SOURCE_LATE,
    },
    "freeze": {"done:freeze": _row("sent", Say("sent")), **_SOURCE_LATE},
    "sent": {"received": _row("arrived", Journal(State.RECEIVED, False)), **_SOURCE_LATE},
    "arrived": {
        "prepared": _row("bury", Journal(State.COMMITTED), Do(Action.BURY)),
        **_SOURCE_LATE,
    },
    # COMMIT lies behind us: there is only forward.
    "bury": {
        "done:bury": _row("gone", Say("go")),
        "failed:bury": _row("stuck", HangUp(), _UNFINISHED),
        "lost": _row("bury_cut"),
        "message:*": _row("bury_cut", HangUp()),
    },
    "bury_cut": {
        "done:bury": _row("reach", _RECONNECT),
        "failed:bury": _row("stuck", _UNFINISHED),
    },
    "gone": {
        "running": _row("clean", Journal(State.RUNNING), Do(Action.CLEAN)),
        "fault": _row("stuck", HangUp(), _UNFINISHED),
        "lost": _row("reach", _RECONNECT),
        **_rows("overdue message:*", _row("reach", HangUp(), _RECONNECT)),
    },
    "reach": {
        "done:reconnect": _row("reach_greet", Say("hello")),
        "failed:reconnect": _row("stuck", _UNFINISHED),
    },
    "reach_greet": {
        "hello": _row("reach_ask", Say("status")),
        "lost": _row("reach", _RECONNECT),
        "overdue": _row("reach", HangUp(), _RECONNECT),
        "message:*": _row("stuck", HangUp(), _UNFINISHED),
    },
    "reach_ask": {
        "status_is:prepared": _row("gone", Say("go")),
        "status_is:committed": _row("gone"),
        **_rows(
            "status_is:running status_is:cleaned",
            _row("clean", Journal(State.RUNNING), Do(Action.CLEAN)),
        ),
        "lost": _row("reach", _RECONNECT),
        "overdue": _row("reach", HangUp(), _RECONNECT),
        "message:*": _row("stuck", HangUp(), _UNFINISHED),
    },
    "clean": {
        "done:clean": _row("cleaned", Journal(State.CLEANED), Say("cleaned"), _MOVED),
        "failed:clean": _row("stuck_running", _UNFINISHED),
    },
    "cleaned": {},
    # Aborted: the tasks first, then the peer.
    "resume_quiet": {
        "done:resume": _row("aborted", _ABORTED),
        "failed:resume": _row("stuck_aborted", _UNFINISHED),
    },
    "resume": {
        "done:resume": _row("farewell"),
        "failed:resume": _row("stuck_aborted", _UNFINISHED),
        **_rows("status_is:aborted fault", _row("resume_quiet")),
        "lost": _row("resume_cut"),
    },
    "farewell": {
        **_rows("status_is:aborted fault", _row("aborted", _ABORTED)),
        "lost": _row("retell", _RECONNECT),
        "overdue": _row("retell", HangUp(), _RECONNECT),
    },
    "resume_cut": {
        "done:resume": _row("retell", _RECONNECT),
        "failed:resume": _row("stuck_aborted", _UNFINISHED),
    },
    "retell": {
        "done:reconnect": _row("retell_greet", Say("hello")),
        "failed:reconnect": _row("untold", _ABORTED),
    },
    "retell_greet": {
        "hello": _row("retell_ask", Say("status")),
        **_rows("lost overdue message:*", _row("untold", _ABORTED)),
    },
    "retell_ask": {
        "status_is:prepared": _row("retell_wait", Say("abort")),
        # Somebody ordered the destination to run it (`recover --assume`): a person must look.
        **_rows(
            "status_is:committed status_is:running status_is:cleaned",
            _row("stuck_aborted", HangUp(), _UNFINISHED),
        ),
        # It holds nothing that it may not take away by itself, and is at it.
        "status_is:*": _row("aborted", _ABORTED),
        **_rows("lost overdue message:*", _row("untold", _ABORTED)),
    },
    "retell_wait": {
        "status_is:aborted": _row("aborted", _ABORTED),
        **_rows("lost overdue message:*", _row("untold", _ABORTED)),
    },
    # It runs here, but the destination may hold something and doesn't know: the journal stays.
    "untold": {},
    "aborted": {},
    "stuck": {},
    "stuck_running": {},
    "stuck_aborted": {},
}

_SOURCE_STATES = {
    **dict.fromkeys(("new", "greet", "check", "ask"), State.PLANNED),
    "sync": State.SYNCING,
    **dict.fromkeys(("freeze", "sent"), State.FROZEN),
    "arrived": State.RECEIVED,
    **dict.fromkeys(
        ("bury", "bury_cut", "gone", "reach", "reach_greet", "reach_ask", "stuck"),
        State.COMMITTED,
    ),
    **dict.fromkeys(("clean", "stuck_running"), State.RUNNING),
    "cleaned": State.CLEANED,
    **dict.fromkeys(
        _names(
            "resume_quiet resume resume_cut farewell retell retell_greet retell_ask retell_wait "
            "aborted untold stuck_aborted"
        ),
        State.ABORTED,
    ),
}


@dataclass(frozen=True, slots=True)
class Source(Machine):
    """The source's end.  ``Source(id, hello)``, then ``handle(Begin())`` or ``Restored(state)``."""

    TABLE: ClassVar[Table] = _SOURCE
    STATES: ClassVar = _SOURCE_STATES
    AWAITS_PEER: ClassVar = frozenset(
        _names(
            "greet ask sent arrived gone farewell reach_greet reach_ask retell_greet retell_ask "
            "retell_wait"
        )
    )
    FINAL: ClassVar = frozenset(_names("cleaned aborted untold stuck stuck_running stuck_aborted"))


# ── the destination ───────────────────────────────────────────────────────────────────────────

_DISCARD = (Journal(State.ABORTED), Do(Action.DISCARD))
_TELL_AND_DISCARD = (Journal(State.ABORTED), Say("abort"), Do(Action.DISCARD))

_NOTHING_YET = {
    **_rows("abort lost", _row("aborted", _ABORTED)),
    **_rows("overdue asked message:*", _row("aborted", Say("abort"), _ABORTED)),
}
# It has not said "prepared", so the source cannot have committed: it may give up by itself.
_UNPREPARED = {
    **_rows("abort lost", _row("discard", *_DISCARD)),
    **_rows("failed:* overdue asked message:*", _row("discard", *_TELL_AND_DISCARD)),
}
_ANSWER_STATUS = Say("status_is")

_DESTINATION: Table = {
    "new": {"begin": _row("greet")},
    "greet": {"hello": _row("greeted", Say("hello")), **_NOTHING_YET},
    "greeted": {
        "preflight": _row("check", Do(Action.CHECK)),
        "status": _row("recall", Do(Action.RECALL)),
        **_NOTHING_YET,
    },
    "check": {
        "done:check": _row("checked", Journal(State.CHECKED), Say("report")),
        "refused:check": _row("aborted", Say("report"), _ABORTED),
        **_UNPREPARED,
    },
    "checked": {
        "sync_begin": _row("receive", Journal(State.RECEIVING, False), Do(Action.RECEIVE)),
        **_UNPREPARED,
    },
    "receive": {"freeze": _row("brace", Do(Action.BRACE)), **_UNPREPARED},
    "brace": {"sent": _row("verify", Do(Action.VERIFY)), **_UNPREPARED},
    "verify": {
        "done:verify": _row(
            "prepare", Journal(State.RECEIVED, False), Say("received"), Do(Action.PREPARE)
        ),
        **_UNPREPARED,
    },
    "prepare": {
        "done:prepare": _row("prepared", Journal(State.PREPARED), Say("prepared")),
        **_UNPREPARED,
    },
    # From here only the source's word counts.
    "prepared": {
        "go": _row("release", Journal(State.COMMITTED), Do(Action.RELEASE)),
        "abort": _row("discard", *_DISCARD),
        "status": _row("prepared", _ANSWER_STATUS),
        "lost": _row("waiting", _WAITING),
        **_rows("overdue asked message:*", _row("waiting", HangUp(), _WAITING)),
    },
    "waiting": {},
    "release": {
        "done:release": _row("running", Journal(State.RUNNING), Say("running")),
        "failed:release": _row("stuck", Say("fault"), _UNFINISHED),
        "status": _row("release", _ANSWER_STATUS),
        "lost": _row("release_cut"),
    },
    "release_cut": {
        "done:release": _row("left", Journal(State.RUNNING), _MOVED),
        "failed:release": _row("stuck", _UNFINISHED),
    },
    "running": {
        "cleaned": _row("cleaned", Journal(State.CLEANED), _MOVED),
        "status": _row("running", _ANSWER_STATUS),
        "go": _row("running", Say("running")),
        **_rows("lost overdue asked message:*", _row("left", _MOVED)),
    },
    "left": {},
    "cleaned": {},
    "discard": {
        "done:discard": _row("aborted", _ANSWER_STATUS, _ABORTED),
        "failed:discard": _row("stuck_aborted", Say("fault"), _UNFINISHED),
    },
    "aborted": {},
    # A new agent, asked about an old migration.
    "recall": {
        "done:recall:none": _row("unknown", _ANSWER_STATUS, _ABORTED),
        **_rows(
            "done:recall:checked done:recall:receiving done:recall:received",
            _row("discard", Journal(State.ABORTED), Do(Action.DISCARD)),
        ),
        "done:recall:aborted": _row("discard", Do(Action.DISCARD)),
        "done:recall:prepared": _row("prepared", _ANSWER_STATUS),
        "done:recall:committed": _row("release", _ANSWER_STATUS, Do(Action.RELEASE)),
        **_rows(
            "done:recall:running done:recall:cleaned",
            _row("running", _ANSWER_STATUS),
        ),
        "failed:recall": _row("stuck_unknown", Say("fault"), _UNFINISHED),
        "lost": _row("stuck_unknown", _UNFINISHED),
    },
    "unknown": {},
    "stuck": {},
    "stuck_aborted": {},
    "stuck_unknown": {},
}

_DESTINATION_STATES = {
    **dict.fromkeys(_names("new greet greeted check recall unknown stuck_unknown"), State.NONE),
    "checked": State.CHECKED,
    **dict.fromkeys(("receive", "brace", "verify"), State.RECEIVING),
    "prepare": State.RECEIVED,
    **dict.fromkeys(("prepared", "waiting"), State.PREPARED),
    **dict.fromkeys(("release", "release_cut", "stuck"), State.COMMITTED),
    **dict.fromkeys(("running", "left"), State.RUNNING),
    "cleaned": State.CLEANED,
    **dict.fromkeys(("discard", "aborted", "stuck_aborted"), State.ABORTED),
}


@dataclass(frozen=True, slots=True)
class Destination(Machine):
    """The destination's end.  ``Destination("", hello)``, then ``handle(Begin())``.

    It learns the migration's id from ``preflight``, or, for one that was interrupted, from
    ``status``: then RECALL brings the journal's state and it goes on from there.
    """

    TABLE: ClassVar[Table] = _DESTINATION
    STATES: ClassVar = _DESTINATION_STATES
    AWAITS_PEER: ClassVar = frozenset(_names("greet greeted checked prepared running"))
    FINAL: ClassVar = frozenset(
        _names("waiting left cleaned aborted unknown stuck stuck_aborted stuck_unknown")
    )
