"""Carrying out the migration transaction: the pure machine of transport/protocol.py meets threads, a link and a disk.

One loop takes events from a queue, hands them to the machine, and carries out what it puts out, in order. Actions run
in threads of their own, one at a time, and come back as events; a reader thread turns messages into events. Messages
that belong to a step (lanes, notes) go to whoever waits for them, past the machine.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ckpt import __version__
from transport.errors import LinkLost, TimedOut, TransportFault
from transport.framing import FrameLink
from transport.machine import Machine
from transport.messages import BESIDES, Message, check, make
from transport.protocol import (
    AbortAsked,
    Action,
    Do,
    Done,
    Event,
    Failed,
    Finish,
    HangUp,
    Journal,
    Lost,
    Outcome,
    Overdue,
    Received,
    Send,
    State,
)

log = logging.getLogger(__name__)

Work = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
SOFTWARE = f"ckpt {__version__}"
FEATURES = ["cold"]
PATIENCE = 60.0
"""Seconds that the peer may take where only its word can bring us forward."""


class Conversation:
    """One end. ACTIONS: what each of the machine's actions does; it may raise, and returns facts."""

    def __init__(
        self,
        machine: Machine,
        actions: Mapping[Action, Work],
        journal: Callable[[State, bool, str], None],
        *,
        patience: float = PATIENCE,
        on_state: Callable[[State], None] = lambda state: None,
    ) -> None:
        self._machine = machine
        self._actions = actions
        self._journal = journal
        self._patience = patience
        self._on_state = on_state
        self._events: queue.Queue[Event] = queue.Queue()
        self._link: FrameLink | None = None
        self._asides: dict[str, queue.Queue[Message]] = {}
        self._asides_lock = threading.Lock()
        self._on_note: dict[str, Callable[[Message], None]] = {}

    # ---- for the actions

    @property
    def machine(self) -> Machine:
        return self._machine

    def replace_machine(self, machine: Machine) -> None:
        """Before run(): another machine, for a migration that goes on from a journal."""
        self._machine = machine

    def connect(self, link: FrameLink) -> None:
        """Use this link from now on."""
        self._link = link
        threading.Thread(target=self._listen, args=(link,), name="link", daemon=True).start()

    def tell(self, kind: str, **fields: Any) -> None:
        """Send a message that belongs to a step."""
        link = self._link
        if link is None:
            raise LinkLost(doing="telling", target="the peer", why="there is no connection")
        link.send(make(kind, **fields))

    def answer_to(self, kind: str, timeout: float = 30.0) -> Message:
        """The next message of KIND that is not the transaction's. Raises TimedOut."""
        try:
            message = self._aside(kind).get(timeout=timeout)
        except queue.Empty:
            raise TimedOut(
                doing="waiting for", target=f"the peer's {kind}", why=f"none in {timeout:g} s"
            ) from None
        if message.get("type") == "lost":
            raise LinkLost(
                doing="waiting for", target="the peer", why="the link was lost", retry=True
            )
        return message

    def on(self, kind: str, handler: Callable[[Message], None]) -> None:
        """Call HANDLER for each message of KIND that is not the transaction's, in the reader's thread."""
        self._on_note[kind] = handler

    def ask_to_abort(self, fault: Exception) -> None:
        """From any thread, or a signal handler: end it if it can still be ended."""
        self._events.put(AbortAsked(fault))

    def feed(self, event: Event) -> None:
        self._events.put(event)

    # ---- the loop

    def run(self, first: Event) -> tuple[Outcome, Exception | None]:
        """From FIRST to the end. Returns how it ended, and why if not as wished."""
        self._events.put(first)
        while True:
            try:
                wait = self._patience if self._machine.awaits_peer else None
                event = self._events.get(timeout=wait)
            except queue.Empty:
                event = Overdue()
            before = self._machine.state
            self._machine, outputs = self._machine.handle(event)
            log.debug("%s: %s", event, self._machine.position)
            for output in outputs:
                match output:
                    case Journal(state, durable):
                        self._journal(state, durable, self._machine.id)
                    case Send(message):
                        self._send(message)
                    case Do(action, facts):
                        self._begin(action, facts)
                    case HangUp():
                        self._hang_up()
                    case Finish(outcome, cause):
                        self._on_state(self._machine.state)
                        return outcome, cause
            if self._machine.state != before:
                self._on_state(self._machine.state)

    def _begin(self, action: Action, facts: Mapping[str, Any]) -> None:
        def work() -> None:
            try:
                found = self._actions[action](facts) or {}
                self._events.put(Done(action, found))
            except Exception as fault:
                log.debug("%s failed", action, exc_info=True)
                self._events.put(Failed(action, fault))

        threading.Thread(target=work, name=str(action), daemon=True).start()

    def _send(self, message: Message) -> None:
        link = self._link
        try:
            if link is None:
                raise LinkLost(doing="sending to", target="the peer", why="there is no connection")
            link.send(message)
        except TransportFault as fault:
            self._events.put(Lost(fault))

    def _hang_up(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _listen(self, link: FrameLink) -> None:
        try:
            while True:
                message = check(link.recv())
                kind = message["type"]
                if kind == "ping":
                    link.send(make("pong", n=message["n"]))
                elif kind in BESIDES:
                    handler = self._on_note.get(kind)
                    if handler is not None:
                        handler(message)
                    else:
                        self._aside(kind).put(message)
                else:
                    self._events.put(Received(message))
        except TransportFault as fault:
            if self._link is link:
                self._lose(fault)
        except OSError as error:
            if self._link is link:
                self._lose(LinkLost(doing="hearing", target="the peer", why=str(error), retry=True))

    def _lose(self, fault: TransportFault) -> None:
        self._link = None
        with self._asides_lock:
            for waiting in self._asides.values():
                waiting.put({"type": "lost"})
        self._events.put(Lost(fault))

    def _aside(self, kind: str) -> queue.Queue[Message]:
        with self._asides_lock:
            return self._asides.setdefault(kind, queue.Queue())
