"""The other host, as a migration's source has it: sessions, lanes, its clock, questions besides the transaction."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any

from ckpt.ops import dialect
from ckpt.ops.host import Host
from ckpt.ops.hosts import Registry
from ckpt.ops.timeline import Timeline
from transport import ssh
from transport.conversation import Conversation
from transport.errors import AuthRefused, HostKeyChanged, TransportFault, UnknownHost
from transport.framing import FrameLink
from transport.lane_opening import open_lane
from transport.lanes import PREFERENCE, LaneWriter
from transport.messages import greet, make
from transport.protocol import State

log = logging.getLogger(__name__)

ASKING = 30.0
"""Seconds that the peer may take to answer a question besides the transaction."""
HEARING = 2.0
"""Seconds that it may take to tell what is only for the report."""
CLOCK_ASKS = 5
TRYING = 10.0
"""Seconds of asking again, where what can't be asked counts as gone."""


class OtherHost:
    """Use as a context manager, which ends its sessions. TARGET: as the user calls it. LANES: kinds allowed."""

    def __init__(self, hosts: Registry, target: str, lanes: tuple[str, ...]) -> None:
        self._hosts = hosts
        self._target = target
        self._kinds = lanes or PREFERENCE
        self._remote = hosts.command(target)
        self._stack = contextlib.ExitStack()
        self._session: ssh.Session | None = None
        self.conversation: Conversation | None = None
        self.clock_offset_ns = 0
        """Its clock less ours, and how far that may be off."""
        self.clock_error_ns = 0

    def __enter__(self) -> OtherHost:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def address(self) -> str:
        """How it is reached, whatever its name means later."""
        return self._hosts.meant(self._target).target

    @property
    def conversed(self) -> Conversation:
        assert self.conversation is not None
        return self.conversation

    # ---- sessions

    def dial(self, timeout: float | None = None) -> FrameLink:
        """A session with a new agent. Raises TransportFault."""
        session = self._hosts.connect(self._target, timeout=timeout)
        self._stack.callback(session.close)
        self._session = session
        return FrameLink(session.open_command([*self._remote, "agent"]))

    def reach(self, patience: float, hurry: threading.Event) -> FrameLink:
        """The same, tried for PATIENCE seconds or until HURRY is set. Raises the last attempt's fault."""
        until = time.monotonic() + patience
        delay = 0.1
        while True:
            left = max(1.0, until - time.monotonic())
            try:
                return self.dial(min(left, 10.0))
            except TransportFault as fault:
                hopeless = isinstance(fault, UnknownHost | HostKeyChanged | AuthRefused)
                if hopeless or time.monotonic() + delay > until or hurry.wait(delay):
                    raise
            delay = min(5.0, delay * 2)

    # ---- lanes

    def announced_lane(self, facts: dict[str, Any]) -> LaneWriter:
        """A lane that is the caller's."""
        lane = self.offered_lane()
        try:
            self.conversed.send(make("note", topic="lane", body={"token": lane.token, **facts}))
        except BaseException:
            lane.abort()
            raise
        return lane

    def offered_lane(self) -> LaneWriter:
        """A lane that is the caller's, and of which the destination doesn't know yet what it is for."""
        conversation, session = self.conversed, self._session
        assert session is not None
        return open_lane(
            session,
            lambda message: conversation.ask(message, ASKING),
            lambda token, path: [*self._remote, "agent", "--lane", token, "--socket", path],
            kinds=self._kinds,
        )

    # ---- questions

    def compare_clocks(self) -> None:
        """Its clock against ours, from the quickest of a few round trips (as NTP does)."""
        best = None
        for _ in range(CLOCK_ASKS):
            before = time.time_ns()
            answer = self.conversed.ask(make("note", topic="clock", body={}), ASKING)
            theirs = int(answer["body"]["ns"])
            after = time.time_ns()
            if best is None or after - before < best[0]:
                best = (after - before, theirs - (before + after) // 2)
        assert best is not None
        self.clock_error_ns, self.clock_offset_ns = best[0] // 2, best[1]

    def await_readiness(self, stop: threading.Event) -> None:
        """Until CRIU waits there for its first image: nothing that can be done before is in the frozen window."""
        until = time.monotonic() + ASKING
        while time.monotonic() < until and not stop.is_set():
            answer = self.conversed.ask(make("note", topic="ready", body={}), ASKING)
            if answer["body"].get("ready"):
                return
            time.sleep(0.01)

    def hear_arrivals(self, timeline: Timeline) -> None:
        """For the report, if it can still be asked: when what happened there."""
        with contextlib.suppress(TransportFault):
            answer = self.conversed.ask(make("note", topic="times", body={}), HEARING)
            timeline.arrivals(answer["body"], self.clock_offset_ns)


def peer_state(host: Host, target: str, identity: str) -> State | None:
    """What TARGET's journal of migration IDENTITY says; None if it can't be asked, though it was tried a few times."""
    until = time.monotonic() + TRYING
    while (state := _ask_state(host, target, identity)) is None and time.monotonic() < until:
        time.sleep(0.5)
    return state


def _ask_state(host: Host, target: str, identity: str) -> State | None:
    try:
        with contextlib.ExitStack() as stack:
            hosts = Registry(host)
            session = hosts.connect(target, timeout=10.0)
            stack.callback(session.close)
            link = FrameLink(session.open_command([*hosts.command(target), "agent"]))
            stack.callback(link.close)
            link.send(greet(dialect.software(), dialect.FEATURES))
            until = time.monotonic() + ASKING
            while time.monotonic() < until:
                heard = link.recv(ASKING)
                if heard["type"] == "hello":
                    link.send(make("status", id=identity))
                elif heard["type"] == "status_is":
                    return State(heard["state"])
    except (TransportFault, ValueError, KeyError) as fault:
        log.info("%s does not say what it knows: %s", target, fault)
    return None
