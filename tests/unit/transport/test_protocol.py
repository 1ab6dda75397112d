"""No interleaving of messages, losses, failures and crashes gives two copies, or none."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.transport.migration_model import ID, Broken, World, a_fault
from transport.errors import VersionMismatch
from transport.messages import greet, make
from transport.protocol import (
    AbortAsked,
    Action,
    Begin,
    Destination,
    Done,
    Failed,
    Finish,
    Journal,
    Lost,
    Outcome,
    Overdue,
    Received,
    Send,
    Settle,
    Source,
    State,
    decide,
)

HELLO = greet("test", [])


def walk_without_faults() -> World:
    world = World.new(faults=0)
    while steps := list(world.steps()):
        world = steps[0][1]
        world.check()
    return world


def test_without_faults_it_moves() -> None:
    world = walk_without_faults()
    assert world.source.outcome is world.destination.outcome is Outcome.MOVED
    assert world.source.journal is world.destination.journal is State.CLEANED


@pytest.mark.parametrize("faults", [1, 2, 3])
def test_every_interleaving_with_few_faults_leaves_one_copy(faults: int) -> None:
    start = World.new(faults)
    parents: dict[object, tuple[object, str]] = {start.key(): (None, "start")}
    queue = deque([start])
    ends = set()
    while queue:
        world = queue.popleft()
        key = world.key()
        try:
            world.check()
            steps = list(world.steps())
        except Broken as broken:
            pytest.fail(f"{broken}:\n" + "\n".join(story(parents, key)))
        if not steps:
            ends.add((world.source.outcome, world.destination.outcome))
        for label, following in steps:
            if following.key() not in parents:
                parents[following.key()] = (key, label)
                queue.append(following)
    assert len(parents) > 1000
    assert (Outcome.MOVED, Outcome.MOVED) in ends
    assert (Outcome.ABORTED, Outcome.ABORTED) in ends


def story(parents: dict[object, tuple[object, str]], key: object) -> list[str]:
    lines = []
    while key is not None:
        key, label = parents[key]
        lines.append(label)
    return lines[::-1]


@settings(max_examples=300)
@given(st.lists(st.integers(0, 1 << 16), max_size=250), st.integers(3, 12))
def test_any_interleaving_with_many_faults_leaves_one_copy(choices: list[int], faults: int) -> None:
    world = World.new(faults)
    for choice in choices:
        steps = list(world.steps())
        if not steps:
            break
        world = steps[choice % len(steps)][1]
        world.check()


def at(machine: Source | Destination, *events: object) -> Source | Destination:
    for event in events:
        machine, _ = machine.handle(event)  # type: ignore[arg-type,assignment]
    return machine


def committed_source() -> Source | Destination:
    return at(
        Source(ID, HELLO),
        Begin(),
        Received(HELLO),
        Done(Action.CHECK),
        Received(make("report", ok=True)),
        Done(Action.SYNC),
        Done(Action.FREEZE),
        Received(make("received")),
        Received(make("prepared")),
    )


def prepared_destination() -> Source | Destination:
    return at(
        Destination("", HELLO),
        Begin(),
        Received(HELLO),
        Received(make("preflight", id=ID)),
        Done(Action.CHECK, {"ok": True}),
        Received(make("sync_begin")),
        Received(make("freeze")),
        Received(make("sent")),
        Done(Action.VERIFY),
        Done(Action.PREPARE),
    )


def test_the_commit_record_is_durable_before_anything_else_happens() -> None:
    source = at(
        Source(ID, HELLO),
        Begin(),
        Received(HELLO),
        Done(Action.CHECK),
        Received(make("report", ok=True)),
        Done(Action.SYNC),
        Done(Action.FREEZE),
        Received(make("received")),
    )
    _, outputs = source.handle(Received(make("prepared")))
    assert outputs[0] == Journal(State.COMMITTED, durable=True)
    assert not [output for output in outputs if isinstance(output, Send)]


def test_go_is_said_only_when_the_source_is_buried() -> None:
    _, outputs = committed_source().handle(Done(Action.BURY))
    assert outputs == (Send(make("go", id=ID)),)


@pytest.mark.parametrize("event", [AbortAsked(a_fault()), Lost(), Overdue()])
def test_after_commit_nothing_makes_the_source_resume(event: object) -> None:
    machine = at(committed_source(), event, Done(Action.BURY), event, event)
    assert machine.state is State.COMMITTED


@pytest.mark.parametrize("event", [AbortAsked(a_fault()), Lost(), Overdue()])
def test_a_prepared_destination_that_loses_its_peer_waits(event: object) -> None:
    machine, outputs = prepared_destination().handle(event)  # type: ignore[arg-type]
    assert machine.state is State.PREPARED
    assert [o.outcome for o in outputs if isinstance(o, Finish)] == [Outcome.WAITING]


def test_a_message_out_of_turn_aborts_before_commit() -> None:
    source = at(Source(ID, HELLO), Begin(), Received(make("prepared")))
    assert source.state is State.ABORTED
    assert "unexpected" in str(source.cause)


def test_what_hinders_the_end_is_told_not_what_began_it() -> None:
    began, hinders = a_fault(), a_fault()
    source = at(Source(ID, HELLO), Begin(), AbortAsked(began))
    source, outputs = source.handle(Failed(Action.RESUME, hinders))
    (finish,) = [output for output in outputs if isinstance(output, Finish)]
    assert finish.outcome is Outcome.UNFINISHED
    assert finish.cause is hinders and source.cause is began


def test_a_message_about_another_migration_is_not_obeyed() -> None:
    machine, outputs = prepared_destination().handle(Received(make("go", id="mig-99999999")))
    assert machine.state is State.PREPARED
    assert not [output for output in outputs if isinstance(output, Journal)]


def test_another_version_is_refused_by_both_ends_by_name() -> None:
    other = HELLO | {"version": 2}
    for machine in (Source(ID, HELLO), Destination("", HELLO)):
        machine, outputs = at(machine, Begin()).handle(Received(other))
        assert isinstance(machine.cause, VersionMismatch)
        aborts = [o for o in outputs if isinstance(o, Send) and o.message["type"] == "abort"]
        assert aborts[0].message["code"] == "version_mismatch"


def test_a_refused_preflight_ends_without_a_trace_at_the_destination() -> None:
    destination = at(
        Destination("", HELLO), Begin(), Received(HELLO), Received(make("preflight", id=ID))
    )
    finding = {"code": "no_space"}
    machine, outputs = destination.handle(Done(Action.CHECK, {"ok": False, "findings": [finding]}))
    assert machine.finished
    assert outputs[0] == Send(make("report", ok=False, findings=[finding]))
    assert not [output for output in outputs if isinstance(output, Journal)]


def test_every_position_has_a_state_and_every_row_leads_somewhere() -> None:
    for role in (Source, Destination):
        positions = set(role.TABLE)
        assert positions == set(role.STATES)
        assert {row[0] for rows in role.TABLE.values() for row in rows.values()} <= positions
        assert positions >= role.FINAL | role.AWAITS_PEER
        assert {position for position, rows in role.TABLE.items() if not rows} == role.FINAL


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (State.PREPARED, State.PREPARED, (Settle.RESUME, Settle.DISCARD)),
        (State.FROZEN, None, (Settle.RESUME, Settle.WAIT)),
        (State.COMMITTED, State.PREPARED, (Settle.BURY, Settle.RELEASE)),
        (State.COMMITTED, State.RUNNING, (Settle.BURY, Settle.NOTHING)),
        (State.COMMITTED, None, (Settle.BURY, Settle.WAIT)),
        (State.COMMITTED, State.NONE, (Settle.PERSON, Settle.PERSON)),
        (State.CLEANED, State.CLEANED, (Settle.BURY, Settle.NOTHING)),
        (State.ABORTED, State.PREPARED, (Settle.RESUME, Settle.DISCARD)),
        (State.ABORTED, State.RUNNING, (Settle.PERSON, Settle.PERSON)),
        (State.PREPARED, State.RUNNING, (Settle.BURY, Settle.NOTHING)),
        (State.SYNCING, State.NONE, (Settle.RESUME, Settle.NOTHING)),
        (None, State.PREPARED, (Settle.NOTHING, Settle.WAIT)),
        (None, State.RECEIVING, (Settle.NOTHING, Settle.DISCARD)),
        (None, State.COMMITTED, (Settle.NOTHING, Settle.RELEASE)),
        (None, State.RUNNING, (Settle.NOTHING, Settle.NOTHING)),
        (State.NONE, State.PREPARED, (Settle.NOTHING, Settle.PERSON)),
    ],
)
def test_recovery_decides_by_both_journals(
    source: State | None, destination: State | None, expected: tuple[Settle, Settle]
) -> None:
    decision = decide(source, destination)
    assert (decision.source, decision.destination) == expected


def test_recovery_never_lets_both_run_and_never_ends_both() -> None:
    """Whatever is asked, at most one side is told to run, and no running one is discarded."""
    for source in (None, *State):
        for destination in (None, *State):
            decision = decide(source, destination)
            assert (decision.source, decision.destination) != (Settle.RESUME, Settle.RELEASE)
            if decision.source is Settle.BURY and source not in (State.RUNNING, State.CLEANED):
                assert decision.destination in (Settle.RELEASE, Settle.WAIT, Settle.NOTHING)
            if decision.destination is Settle.DISCARD:
                assert destination not in (State.COMMITTED, State.RUNNING, State.CLEANED)


def test_the_destination_records_the_go_before_it_releases() -> None:
    _, outputs = prepared_destination().handle(Received(make("go", id=ID)))
    assert outputs[0] == Journal(State.COMMITTED, durable=True)
