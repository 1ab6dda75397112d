"""Both machines over a link in memory, with actions that work, fail, wait and are stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from transport.conversation import Conversation, Facts
from transport.errors import LinkLost, TransportFault
from transport.fakes import link_pair
from transport.framing import FrameLink
from transport.messages import Message, greet, make
from transport.protocol import (
    AbortAsked,
    Action,
    Begin,
    Destination,
    Finish,
    Outcome,
    Restored,
    Source,
    State,
)

ID = "mig-00000001"
HELLO = greet("test", [])
RESULTS: dict[Action, dict[str, Any]] = {
    Action.FREEZE: {"summary": {"bytes": 5}},
    Action.VERIFY: {"summary": {"bytes": 5}},
}


class Host:
    """Records what it is told to do; each action may be replaced."""

    def __init__(self, machine: Source | Destination, **changes: Callable[..., Any]) -> None:
        self.machine = machine
        self.told: list[str] = []
        self.changes = changes
        self.journal: list[State] = []
        self.talk: Conversation | None = None

    def _perform(self, action: Action) -> Callable[[Facts, threading.Event], Facts | None]:
        def perform(facts: Facts, stop: threading.Event) -> Facts | None:
            self.told.append(str(action))
            default = {"ok": True} if self.is_destination else {}
            if str(action) in self.changes:
                return self.changes[str(action)](self, facts, stop)
            return RESULTS.get(action, default if action is Action.CHECK else {})

        return perform

    @property
    def is_destination(self) -> bool:
        return isinstance(self.machine, Destination)

    def write(self, state: State, durable: bool) -> None:
        self.told.append(f"journal {state}")
        self.journal.append(state)

    def conversation(
        self, link: FrameLink | None, besides: Callable[[Message], Message | None] | None = None
    ) -> Conversation:
        self.talk = Conversation(
            self.machine,
            link,
            journal=self.write,
            actions={action: self._perform(action) for action in Action},
            besides=besides,
            peer_timeout=5,
        )
        return self.talk


def move(source: Host, destination: Host, **more: Any) -> tuple[Finish, Finish]:
    here, there = link_pair()
    ours, theirs = source.conversation(here), destination.conversation(there, **more)
    with ThreadPoolExecutor(1) as pool:
        other: Future[Finish] = pool.submit(theirs.run, Begin())
        return ours.run(Begin()), other.result(20)


def test_a_migration_goes_through() -> None:
    source, destination = Host(Source(ID, HELLO)), Host(Destination("", HELLO))
    ends = move(source, destination)
    assert [end.outcome for end in ends] == [Outcome.MOVED, Outcome.MOVED]
    assert source.journal[-1] is destination.journal[-1] is State.CLEANED
    assert source.told.index("journal committed") < source.told.index("bury")
    assert destination.told.index("journal prepared") < destination.told.index("release")


def test_an_action_that_fails_at_the_destination_makes_the_source_resume() -> None:
    def fail(host: Host, facts: Facts, stop: threading.Event) -> None:
        raise TransportFault(doing="restoring", target="web", why="no space", hint="make room")

    source = Host(Source(ID, HELLO))
    destination = Host(Destination("", HELLO), prepare=fail)
    ends = move(source, destination)
    assert [end.outcome for end in ends] == [Outcome.ABORTED, Outcome.ABORTED]
    assert source.told[-1] == "resume" and destination.told[-1] == "discard"
    assert "no space" in str(ends[0].cause) and "make room" in str(ends[0].cause)


def test_an_interrupt_stops_what_is_under_way_before_the_source_resumes() -> None:
    def sync(host: Host, facts: Facts, stop: threading.Event) -> None:
        assert host.talk is not None
        host.talk.tell(AbortAsked(KeyboardInterrupt()))
        assert stop.wait(10)
        host.told.append("sync stopped")

    source, destination = Host(Source(ID, HELLO), sync=sync), Host(Destination("", HELLO))
    ends = move(source, destination)
    assert [end.outcome for end in ends] == [Outcome.ABORTED, Outcome.ABORTED]
    assert source.told.index("sync stopped") < source.told.index("resume")


def test_a_silent_peer_is_given_up() -> None:
    source = Host(Source(ID, HELLO))
    here, there = link_pair()
    talk = source.conversation(here)
    talk._peer_timeout = 0.2
    end = talk.run(Begin())
    there.close()
    assert end.outcome is Outcome.ABORTED
    assert "in time" in str(end.cause)


def test_a_lost_go_is_repeated_over_a_new_link() -> None:
    """The link breaks while the source buries; the second agent finds a prepared container."""
    second = Host(
        Destination("", HELLO), recall=lambda host, facts, stop: {"state": State.PREPARED}
    )
    first = Host(Destination("", HELLO))
    here, there = link_pair()
    with ThreadPoolExecutor(2) as pool:

        def bury(host: Host, facts: Facts, stop: threading.Event) -> None:
            assert first.talk is not None
            first.talk.tell(AbortAsked(KeyboardInterrupt()))  # the agent goes away, holding

        def reconnect(host: Host, facts: Facts, stop: threading.Event) -> Facts:
            ours, theirs = link_pair()
            jobs.append(pool.submit(second.conversation(theirs).run, Begin()))
            return {"link": ours}

        source = Host(Source(ID, HELLO), bury=bury, reconnect=reconnect)
        jobs = [pool.submit(first.conversation(there).run, Begin())]
        end = source.conversation(here).run(Begin())
        outcomes = [job.result(20).outcome for job in jobs]
    assert end.outcome is Outcome.MOVED
    assert outcomes == [Outcome.WAITING, Outcome.MOVED]
    assert "release" in second.told and "resume" not in source.told


def test_recovery_of_an_uncommitted_source_resumes_even_if_nobody_answers() -> None:
    def unreachable(host: Host, facts: Facts, stop: threading.Event) -> None:
        raise LinkLost(doing="connecting to", target="there", why="gone")

    source = Host(Source(ID, HELLO), reconnect=unreachable)
    end = source.conversation(None).run(Restored(State.FROZEN))
    assert end.outcome is Outcome.ABORTED
    assert source.told == ["journal aborted", "resume", "reconnect"]


def test_a_journal_that_cannot_be_written_stops_everything_before_the_next_step() -> None:
    class Full(Host):
        def write(self, state: State, durable: bool) -> None:
            if state is State.COMMITTED:
                raise OSError(28, "No space left on device")
            super().write(state, durable)

    source, destination = Full(Source(ID, HELLO)), Host(Destination("", HELLO))
    here, there = link_pair()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(destination.conversation(there).run, Begin())
        with pytest.raises(OSError, match="No space"):
            source.conversation(here).run(Begin())
        assert other.result(20).outcome is Outcome.WAITING
    assert "bury" not in source.told


def test_steps_can_ask_the_other_end_while_the_transaction_goes_on() -> None:
    def sync(host: Host, facts: Facts, stop: threading.Event) -> None:
        assert host.talk is not None
        offer = host.talk.ask(make("lane_ask", kind="tls"), 5)
        host.told.append(f"offered {offer['token']}")
        note = host.talk.ask(make("note", topic="layers", body={"have": ["a"]}), 5)
        host.told.append(f"missing {note['body']['missing']}")

    def besides(message: Message) -> Message:
        if message["type"] == "lane_ask":
            return make("lane_offer", kind=message["kind"], token="t")
        return make("note", topic="layers", body={"missing": ["b"]})

    source, destination = Host(Source(ID, HELLO), sync=sync), Host(Destination("", HELLO))
    ends = move(source, destination, besides=besides)
    assert [end.outcome for end in ends] == [Outcome.MOVED, Outcome.MOVED]
    assert "offered t" in source.told and "missing ['b']" in source.told


def test_a_question_fails_when_the_link_is_lost() -> None:
    here, there = link_pair()
    caught: list[TransportFault] = []

    def check(host: Host, facts: Facts, stop: threading.Event) -> None:
        there.close()
        assert host.talk is not None
        try:
            host.talk.ask(make("note", topic="x"), 10)
        except TransportFault as fault:
            caught.append(fault)
            raise

    source = Host(Source(ID, HELLO), check=check)
    there.send(HELLO)
    end = source.conversation(here).run(Begin())
    assert end.outcome is Outcome.ABORTED
    assert isinstance(caught[0], LinkLost)


def test_rubbish_on_the_link_aborts() -> None:
    source = Host(Source(ID, HELLO))
    here, there = link_pair()
    there.send({"type": "exec", "command": "rm"})
    end = source.conversation(here).run(Begin())
    there.close()
    assert end.outcome is Outcome.ABORTED
    assert "unknown type 'exec'" in str(end.cause)


def test_a_question_that_cannot_be_answered_aborts_with_the_reason_at_both_ends() -> None:
    def sync(host: Host, facts: Facts, stop: threading.Event) -> None:
        assert host.talk is not None
        host.talk.ask(make("note", topic="layers"), 60)

    def besides(message: Message) -> Message:
        raise TransportFault(doing="reading", target="layers", why="the disk is gone")

    source, destination = Host(Source(ID, HELLO), sync=sync), Host(Destination("", HELLO))
    ends = move(source, destination, besides=besides)
    assert [end.outcome for end in ends] == [Outcome.ABORTED, Outcome.ABORTED]
    assert "the disk is gone" in str(ends[0].cause)
