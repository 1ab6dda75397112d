"""`ckpt agent`: the other host's end of a migration, started over SSH, speaking on its standard streams.

It carries out the destination's column of the exchange in transport/protocol.py. What it has prepared outlives it:
the container's monitor holds it, and `ckpt recover` or another agent goes on from the journal. What it had begun when
it was killed is taken away by the next agent that the source starts, or by `ckpt recover`: the journal names the
container before anything of it is there.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckpt.ops import arrived, dialect, interrupt, stops, tidy
from ckpt.ops.arrival import Arrival
from ckpt.ops.host import Host
from ckpt.ops.journal import Entry, Journal
from ckpt.ops.landing import Landing
from ckpt.ops.later import PagesLater
from ckpt.ops.lend import TOPIC
from ckpt.ops.preflight import available_memory, destination_facts, destination_findings
from ckpt.ops.probe import Trial
from ckpt.ops.restore import Incoming
from images.manifest import Manifest
from images.moving import FOR_EVER
from runtime.errors import Conflict, NotFound, SystemFault, TimedOut
from transport.conversation import Conversation, Facts
from transport.errors import ProtocolFault
from transport.framing import FdStream, FrameLink
from transport.lane_host import LaneHost
from transport.lanes import LaneReader
from transport.messages import Message, greet, make
from transport.protocol import AbortAsked, Action, Begin, Destination, Outcome, State

ARRIVING = 600.0
"""Seconds for what the source has announced. A lost link or a stopped action ends the wait at once."""
LANE_OPENING = 20.0
TICK = 0.1
RECALLING = 60.0
"""Seconds that the agent before us may take to take away what it had begun."""


class Agent:
    """One migration's destination."""

    def __init__(self, host: Host, link: FrameLink) -> None:
        self.host = host
        self._name = ""
        self._peer = ""
        self._journal: Journal | None = None
        self._lane: LaneReader | None = None
        self._lane_notes: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._pages_lane: LaneReader | None = None
        self._landing: Landing | None = None
        self._braced = threading.Event()
        self._incoming: Incoming | None = None
        self._arrival: Arrival | None = None
        self._arriving: str | None = None
        self._restoring: threading.Thread | None = None
        self._restore_fault: BaseException | None = None
        self._stopped = threading.Event()
        self._pages = PagesLater(host, lambda: self.conversation, self.another_lane, self._stopped)
        self._folder: Path | None = None
        self._lanes: LaneHost | None = None
        self._trial: Trial | None = None
        self._times: dict[str, int] = {}
        actions: dict[Action, stops.Perform] = {
            Action.CHECK: self.check,
            Action.RECEIVE: self.receive,
            Action.BRACE: self.brace,
            Action.VERIFY: self.verify,
            Action.PREPARE: self.prepare,
            Action.RELEASE: self.release,
            Action.DISCARD: self.discard,
            Action.RECALL: self.recall,
        }
        self.conversation = Conversation(
            Destination("", greet(dialect.software(), dialect.FEATURES)),
            link,
            journal=self.write_journal,
            actions={action: stops.around(action, perform) for action, perform in actions.items()},
            besides=self.besides,
            interrupt=self._interrupt,
        )

    def run(self) -> Outcome:
        try:
            outcome = self.conversation.run(Begin()).outcome
            if outcome is Outcome.ABORTED and self._journal is not None:
                self._journal.forget()
            if outcome is Outcome.MOVED and self._arrival is not None:
                self._arrival.tell_started()
            return outcome
        finally:
            self.close()

    def close(self) -> None:
        self._end_receiving()
        if self._landing is not None:
            self._landing.close()
        if self._trial is not None:
            self._trial.close()
        if self._lanes is not None:
            self._lanes.close()
        if self._arrival is not None:
            self._arrival.close()
        if self._journal is not None:
            self._journal.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _end_receiving(self) -> None:
        self._interrupt()
        if self._restoring is not None:
            self._restoring.join()
        if self._incoming is not None:
            self._incoming.close()
        if self._lane is not None:
            self._lane.abort()
            self._lane = None
        if self._pages_lane is not None:
            self._pages_lane.abort()
            self._pages_lane = None
        self._pages.close()

    def _interrupt(self) -> None:
        """Whatever waits ends: nobody will need it."""
        self._stopped.set()
        if self._incoming is not None:
            self._incoming.cancel()

    def _lane_host(self) -> LaneHost:
        """Made when it is asked for: an agent that only looks, or asks a journal, leaves no trace even if killed."""
        if self._lanes is None:
            self._folder = tidy.agent_folder(self.host)
            self._lanes = LaneHost(self._folder, os.environ.get("SSH_CONNECTION", ""))
        return self._lanes

    def besides(self, message: Message) -> Message | None:
        """What belongs to the steps: lanes, and the comparison of clocks."""
        if message["type"] == "lane_ask":
            return self._lane_host().offer(message)
        if message["type"] != "note":
            return None
        if message["topic"] == "clock":
            return make("note", topic="clock", body={"ns": time.time_ns()})
        if message["topic"] == TOPIC:
            self._pages.hear(message["body"])
        if message["topic"] == "try":
            token = str(message["body"].get("token", ""))
            if self._trial is not None:
                self._trial.close()
            self._trial = Trial(self._lane_host(), token, LANE_OPENING, available_memory())
            return make("note", topic="try", body={})
        if message["topic"] == "tried":
            return make("note", topic="tried", body=self._tried(message["body"]))
        if message["topic"] == "times":
            return make("note", topic="times", body=self._told_times())
        if message["topic"] == "lane":
            self._lane_notes.put(message["body"])
        if message["topic"] == "ready":
            ready = self._braced.is_set() or self._restore_fault is not None
            return make("note", topic="ready", body={"ready": ready})
        return None

    def _told_times(self) -> dict[str, int]:
        """For the source's report: names as in ckpt/ops/timeline.py, ns since the epoch."""
        of_arrival = self._arrival.times if self._arrival is not None else {}
        return {**self._times, **of_arrival}

    def _tried(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        trial = self._trial
        if trial is None:
            return {"trouble": "nothing is being tried"}
        if asked.get("done"):
            self._trial = None
            trial.close()
        return {"marks": trial.marks, "trouble": trial.trouble}

    # ---- what the machine asks for

    def write_journal(self, state: State, durable: bool) -> None:
        if self._journal is None:
            if self._arriving is None and state in (State.CHECKED, State.RECEIVING, State.ABORTED):
                return  # nothing is here yet
            entry = Entry(
                id=self.conversation.machine.id,
                role="destination",
                container=self._arriving or "",
                name=self._name,
                peer=self._peer,
                state=str(state),
                facts={"mode": "lazy"} if self._pages.expected else {},
            )
            self._journal = Journal(self.host.paths.journals, entry)
        if self._arrival is not None and self._arrival.began:
            self._journal.entry.container = self._arrival.container.record.id
        self._journal.write(state, durable)
        stops.reached(f"journal-{state}")
        if state == State.CLEANED and "lost" not in self._journal.entry.facts:
            self._journal.forget()

    def check(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        wanted = dialect.check_source(facts["facts"])
        self._name = str(wanted.get("name", ""))
        self._peer = str(wanted.get("host", ""))
        findings = destination_findings(self.host, wanted)
        return {
            "ok": not findings,
            "findings": findings,
            "facts": destination_facts(self.host, wanted),
        }

    def receive(self, facts: Facts, stop: threading.Event) -> None:
        note = self._lane_note(stop)
        self._lane = self._lane_host().accept(str(note["token"]), LANE_OPENING)
        self._times["lane"] = time.time_ns()
        mode = note.get("mode")
        if mode in ("warm", "lazy"):
            self._pages_lane = self.another_lane(stop)
            limit = available_memory()
            self._landing = Landing(self._pages_lane.fd, limit=limit)
            if mode == "lazy":
                self._pages.expect(self._landing, self.another_lane(stop))

        def arrive(manifest: Manifest) -> Arrival:
            # On disk before anything of it is here.
            self._arriving = manifest.container_id
            self.write_journal(State.RECEIVING, True)
            arrival = Arrival(self.host, manifest, name=self._name, same_id=True)
            self._arrival = arrival
            arrival.check_stream()
            arrival.begin()
            if arrival.container.record.id != self._arriving:
                self.write_journal(State.RECEIVING, True)
            self._times["begun"] = time.time_ns()
            stops.reached("begun", stop)
            return arrival

        # While memory travels on its own lane there is nothing to be said here, and before that nothing there. Whether
        # the source lives is known from its heartbeat.
        self._incoming = Incoming(self._lane.fd, arrive, stall=FOR_EVER)
        self._incoming.start()
        # CRIU is started before the frozen window, and waits for its first image.
        self._restoring = threading.Thread(target=self._restore, name="restore", daemon=True)
        self._restoring.start()

    def another_lane(self, stop: threading.Event, mark: str = "") -> LaneReader:
        """The next lane that the source announces, for who asked with the word MARK."""
        while (note := self._lane_note(stop)).get("for", "") != mark:
            pass
        return self._lane_host().accept(str(note["token"]), LANE_OPENING)

    def _lane_note(self, stop: threading.Event) -> Mapping[str, Any]:
        until = time.monotonic() + ARRIVING
        while not stop.is_set() and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                return self._lane_notes.get(timeout=TICK)
        raise TimedOut(
            doing="receiving", target=self._name, why="no lane was announced", retry=True
        )

    def brace(self, facts: Facts, stop: threading.Event) -> None:
        """The frozen window has begun. CRIU is waiting for its first image since receive()."""

    def _restore(self) -> None:
        try:
            assert self._incoming is not None
            arrival = self._incoming.wait_begun()
            self._incoming.wait_layers()
            arrival.restore(
                self._incoming.spool.source(),
                check=self._check_going,
                landing=self._landing,
                on_started=self._brace,
            )
        except BaseException as fault:
            self._restore_fault = fault

    def _brace(self) -> None:
        self._times["criu"] = time.time_ns()
        self._braced.set()

    def _check_going(self) -> None:
        assert self._incoming is not None
        self._incoming.check()
        self._pages.check()
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise SystemFault(
                doing="restoring", target=self._name, why="the migration was given up"
            )

    def verify(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        assert self._incoming is not None
        while not self._incoming.ended.wait(TICK):
            self._check_stopped()
        self._incoming.wait_ended()
        self._times["ended"] = time.time_ns()
        expected, found = dict(facts["summary"]), {"bytes": self._incoming.size}
        marks = int(expected.pop("marks", 0))
        if found != expected:
            raise ProtocolFault(
                doing="receiving", target=self._name, why=f"{found} arrived instead of {expected}"
            )
        if self._landing is not None:
            self._landing.wait_marks(marks, self._check_stopped)
            self._times["pages"] = time.time_ns()
            while not self._braced.wait(TICK):
                self._check_stopped()
            self._landing.hand_over()
            if self._pages.expected:
                # From now on: the restore itself may need a page.
                assert self._arrival is not None
                self._pages.begin(self._arrival.container.paths.run / "criu")
        # The stream's own end was checked; saying goodbye on the lane can wait until the frozen window is over.
        return {"summary": found}

    def prepare(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        assert self._restoring is not None and self._arrival is not None
        self._restoring.join()  # it heeds _stopped
        if self._restore_fault is not None:
            raise _as_fault(self._restore_fault)
        self._check_stopped()
        self._arrival.hold()
        return {"facts": {"prepared_ns": self._arrival.times["prepared"]}}

    def release(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        assert self._journal is not None
        entry = self._journal.entry
        if self._arrival is not None:
            self._arrival.go()
            at = self._arrival.times["running"]
        elif entry.is_lazy:
            at = self._pages.begin_again(entry, stop)
        else:
            at = arrived.release(self.host, entry.id)
        if not entry.is_lazy:
            return {"at": at, "facts": {}}
        if "ran" not in entry.facts:
            entry.facts["ran"] = at
            self._journal.write(State.COMMITTED)
        return {"at": entry.facts["ran"], "facts": self._pages.all(self._journal)}

    def discard(self, facts: Facts, stop: threading.Event) -> None:
        self._end_receiving()
        if self._arrival is not None:
            self._arrival.abandon()
        elif self._journal is not None:
            arrived.discard(self.host, self._journal.entry.id)

    def recall(self, facts: Facts, stop: threading.Event) -> dict[str, Any]:
        tidy.after_agents(self.host)
        identity = self.conversation.machine.id
        until = time.monotonic() + RECALLING
        while True:
            try:
                journals = self.host.paths.journals
                self._journal = Journal.load(journals, identity, "destination")
                return {"state": self._journal.entry.state}
            except NotFound:
                return {"state": "none"}
            except Conflict:
                # The agent before us hasn't noticed yet that it is alone, or is taking its things away.
                if stop.wait(TICK) or time.monotonic() > until:
                    raise


def _as_fault(fault: BaseException) -> Exception:
    if isinstance(fault, Exception):
        return fault
    return SystemFault(doing="restoring", target="the container", why=repr(fault))


def serve(host: Host) -> Outcome:
    """Be the agent on standard input and output. Nothing else may write there: the streams are moved away first."""
    host.ready()
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    agent = Agent(host, FrameLink(FdStream(read_fd, write_fd, target="the source")))

    def asked(number: int, _: object) -> None:
        why = SystemFault(
            doing="arriving", target="the container", why="the agent was asked to end"
        )
        agent.conversation.tell(AbortAsked(why))

    for number in interrupt.SIGNALS:
        signal.signal(number, asked)
    return agent.run()
