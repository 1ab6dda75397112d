"""Carries out what a protocol machine says: the thin I/O around ``protocol``.

One thread (the caller's, in ``run``) owns the machine and takes events from a queue.  Into it put:
a reader thread per link (messages, loss), and one thread per action under way (done, failed).  So
a message, a lost link or Ctrl-C is heard while an action works.

Actions are functions ``action(facts, stop) -> facts or None``; ``stop`` is a threading.Event that
they must heed: it is set when RESUME or DISCARD comes, and those start only when the others have
ended.  RECONNECT returns ``{"link": FrameLink}``.

What the transaction doesn't take goes to ``besides`` (``lane_ask``, ``note``, ``settle``: returns
the answer or None; called in the reader's thread, so it must be quick), or answers an ``ask``.

A journal that can't be written is like a crash: ``run`` stops everything, hangs up and raises;
the caller goes on from what the journal says (``Restored``).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from transport.errors import LinkLost, TimedOut, TransportFault
from transport.framing import FrameLink
from transport.machine import (
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
    Machine,
    Overdue,
    Received,
    Send,
    State,
)
from transport.messages import BESIDES, Message, check, make

log = logging.getLogger(__name__)

Facts = Mapping[str, Any]
Perform = Callable[[Facts, threading.Event], Facts | None]

PEER_TIMEOUT = 120.0
BEAT = 4.0
SILENCE = 20.0
GREETING = 90.0
"""Seconds. Each end says something that often, and takes the link for lost when nothing came for that long: a host
that vanished without a word ends no TCP connection, and an agent that only listens would stay for hours. The first word
may take longer: a login shell has its own ideas."""
_TICK = 0.1  # seconds between looks at the clocks of a link
# What answers what; a note is answered by a note of the same topic.
_ANSWER_TO = {"lane_ask": "lane_offer", "settle": "settled", "note": "note"}


class Conversation:
    """One machine, its journal, its actions and its link."""

    def __init__(
        self,
        machine: Machine,
        link: FrameLink | None,
        *,
        journal: Callable[[State, bool], None],
        actions: Mapping[Action, Perform],
        besides: Callable[[Message], Message | None] | None = None,
        interrupt: Callable[[], None] | None = None,
        peer_timeout: float = PEER_TIMEOUT,
    ) -> None:
        """``interrupt`` is called when RESUME or DISCARD stops other actions, to end what they wait for."""
        self.machine = machine
        self._journal = journal
        self._actions = actions
        self._besides = besides
        self._interrupt = interrupt
        self.peer_timeout = peer_timeout
        self._events: queue.SimpleQueue[tuple[_Reader | None, Event]] = queue.SimpleQueue()
        self._working: dict[Action, tuple[threading.Thread, threading.Event]] = {}
        self._answers: queue.SimpleQueue[Message | TransportFault] = queue.SimpleQueue()
        self._asking = threading.Lock()
        self._expected: tuple[str, str] | None = None
        self._new_link: FrameLink | None = None
        self._reader = _Reader(link, self) if link is not None else None

    def run(self, first: Event) -> Finish:
        """From ``first`` (Begin or Restored) to the end.  Raises what the journal raises."""
        try:
            finish = self._take(first)
            while finish is None:
                finish = self._take(self._next())
            return finish
        finally:
            if self._working and self._interrupt is not None:
                self._interrupt()
            for thread, stop in list(self._working.values()):
                stop.set()
                thread.join()
            self._hang_up()
            if self._new_link is not None:
                self._new_link.close()

    def tell(self, event: Event) -> None:
        """An event from outside, from any thread: AbortAsked."""
        self._events.put((None, event))

    def send(self, message: Message) -> None:
        """A message besides the transaction (progress notes).  Raises LinkLost."""
        reader = self._reader
        if reader is None:
            raise _no_link()
        reader.link.send(check(message))

    def ask(self, message: Message, timeout: float) -> Message:
        """Send a ``lane_ask``, ``note`` or ``settle`` and wait for the answer.

        From actions, not from ``run``'s thread.  Raises LinkLost, TimedOut, ProtocolFault.
        """
        with self._asking:
            while not self._answers.empty():
                self._answers.get()  # came too late for an earlier question
            self._expected = _ANSWER_TO[message["type"]], message.get("topic", "")
            try:
                self.send(message)
                answer = self._answers.get(timeout=timeout)
            except queue.Empty:
                raise TimedOut(
                    doing="asking",
                    target="the peer",
                    why=f"no answer to {message['type']!r} in {timeout:g} s",
                ) from None
            finally:
                self._expected = None
        if isinstance(answer, TransportFault):
            raise answer
        return answer

    # ── the loop ──

    def _next(self) -> Event:
        while True:
            wait = self.peer_timeout if self.machine.awaits_peer else None
            try:
                reader, event = self._events.get(timeout=wait)
            except queue.Empty:
                return Overdue()
            if reader is None or reader is self._reader:
                return event
            # From a link that was given up already.

    def _take(self, event: Event) -> Finish | None:
        if isinstance(event, Lost):
            self._hang_up()
        if isinstance(event, Done | Failed):
            self._working.pop(event.action, None)
        if self._new_link is not None:
            # Here, so that its first event comes after the one that the machine expects.
            self._hang_up()
            self._reader, self._new_link = _Reader(self._new_link, self), None
        before = self.machine.position
        self.machine, outputs = self.machine.handle(event)
        log.debug("%s: %s → %s", type(event).__name__, before, self.machine.position)
        for output in outputs:
            match output:
                case Journal(state, durable):
                    self._journal(state, durable)
                case Send(message):
                    self._say(message)
                case Do(action, facts):
                    self._start(action, facts)
                case HangUp():
                    self._hang_up()
                case Finish():
                    return output
        return None

    def _say(self, message: Message) -> None:
        reader = self._reader
        if reader is None:
            return  # the machine knows that the link is lost
        try:
            reader.link.send(message)
        except TransportFault as fault:
            self._events.put((reader, Lost(fault)))

    def _hang_up(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
            self._answers.put(_no_link())

    # ── actions ──

    def _start(self, action: Action, facts: Facts) -> None:
        others: list[threading.Thread] = []
        if action in (Action.RESUME, Action.DISCARD):
            for thread, stop in self._working.values():
                stop.set()
                others.append(thread)
            if others and self._interrupt is not None:
                self._interrupt()
            self._answers.put(_no_link())  # whoever asks must not wait for its time to be over
        stop = threading.Event()
        thread = threading.Thread(
            target=self._perform, args=(action, facts, stop, others), name=f"ckpt-{action}"
        )
        self._working[action] = thread, stop
        thread.start()

    def _perform(
        self, action: Action, facts: Facts, stop: threading.Event, others: list[threading.Thread]
    ) -> None:
        for thread in others:
            thread.join()
        event: Event
        try:
            result = dict(self._actions[action](facts, stop) or {})
            if action is Action.RECONNECT:
                self._new_link = result.pop("link")
            event = Done(action, result)
        except Exception as fault:  # whatever an action raises is the machine's to judge
            log.debug("%s failed", action, exc_info=True)
            event = Failed(action, fault)
        self._events.put((None, event))

    # ── what the reader hands over ──

    def heard(self, reader: _Reader, message: Message) -> None:
        kind = message["type"]
        if kind not in BESIDES:
            self._events.put((reader, Received(message)))
        elif kind == "ping":
            reader.link.send(make("pong", n=message["n"]))
        elif (kind, message.get("topic", "")) == self._expected:
            self._answers.put(message)
        elif kind != "pong" and self._besides is not None:
            try:
                answer = self._besides(message)
            except Exception as problem:  # the peer waits for an answer: it must hear why
                log.debug("answering %s failed", kind, exc_info=True)
                self._events.put((reader, AbortAsked(problem)))
                return
            if answer is not None:
                reader.link.send(answer)

    def lost(self, reader: _Reader, fault: TransportFault) -> None:
        self._answers.put(fault)
        self._events.put((reader, Lost(fault)))


class _Reader:
    """A link and the thread that reads it."""

    def __init__(self, link: FrameLink, conversation: Conversation) -> None:
        self.link = link
        self._conversation = conversation
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ckpt-reader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        heard = said = time.monotonic()
        patience = GREETING
        while not self._over.is_set():
            try:
                with contextlib.suppress(TimedOut):
                    message = check(self.link.recv(_TICK))
                    heard, patience = time.monotonic(), SILENCE
                    self._conversation.heard(self, message)
                now = time.monotonic()
                if now - heard > patience:
                    raise LinkLost(
                        doing="listening to",
                        target="the peer",
                        why=f"nothing was heard for {patience:g} s",
                        retry=True,
                    )
                if now - said > BEAT:
                    self.link.send(make("ping", n=0), timeout=SILENCE)
                    said = time.monotonic()
            except TransportFault as fault:
                if not self._over.is_set():
                    self._conversation.lost(self, fault)
                return

    def close(self) -> None:
        """Descriptors must not be closed under a thread that waits on them: it ends first."""
        self._over.set()
        self.link.wake()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.link.close()


def _no_link() -> LinkLost:
    return LinkLost(doing="talking to", target="the peer", why="there is no link", retry=True)
