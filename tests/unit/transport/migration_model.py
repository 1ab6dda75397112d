"""Two hosts, a wire, two disks and a container, as a value: every way that they can go wrong.

``World.steps()`` lists all that may happen next; the tests walk through them.  Processes crash
between any two outputs, a crash may lose what was written without ``durable``, links drop with
messages in flight, actions fail, people press Ctrl-C, and recovery starts at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transport.errors import LinkLost
from transport.messages import Message, greet, make
from transport.protocol import (
    AbortAsked,
    Action,
    Begin,
    Destination,
    Do,
    Done,
    Failed,
    Finish,
    HangUp,
    Journal,
    Lost,
    Outcome,
    Overdue,
    Received,
    Restored,
    Send,
    Settle,
    Source,
    State,
    decide,
)

ID = "mig-00000001"
HELLO = greet("model", [])
UNCOMMITTED = (State.NONE, State.PLANNED, State.CHECKED, State.SYNCING, State.FROZEN) + (
    State.RECEIVED,
    State.PREPARED,
    State.ABORTED,
)


class Broken(AssertionError):
    """An invariant does not hold."""


def a_fault() -> LinkLost:
    return LinkLost(doing="being", target="a model", why="the test says so")


def wire_key(message: Message) -> tuple[str, str]:
    extra = message.get("state") or str(message.get("ok", ""))
    return message["type"], extra


def from_wire(key: tuple[str, str]) -> Message:
    kind, extra = key
    match kind:
        case "hello":
            return dict(HELLO)
        case "report":
            return make("report", ok=extra == "True")
        case "status_is":
            return make("status_is", id=ID, state=extra)
        case "abort" | "fault":
            return make(kind, code="model")
        case "preflight" | "go" | "running" | "cleaned" | "status":
            return make(kind, id=ID)
        case _:
            return make(kind)


@dataclass(frozen=True)
class Side:
    """One process (or none), its journal, its end of the link and its tasks."""

    machine: Source | Destination | None
    tasks: str  # "runs", "held" or "none"
    journal: State = State.NONE
    durable: State = State.NONE
    todo: tuple = ()  # outputs not yet carried out
    doing: frozenset[Action] = frozenset()
    link: str = "up"  # "up"; "cut": ended, not noticed yet; "none"
    inbox: tuple = ()
    outcome: Outcome | None = None


Step = tuple[str, "World"]


@dataclass(frozen=True)
class World:
    source: Side
    destination: Side
    faults: int  # how many more things may go wrong

    @staticmethod
    def new(faults: int) -> World:
        world = World(Side(Source(ID, HELLO), "runs"), Side(Destination("", HELLO), "none"), faults)
        return world.feed("source", Begin()).feed("destination", Begin())

    # ── what may happen next ──

    def steps(self) -> Iterator[Step]:
        for name in ("source", "destination"):
            side: Side = getattr(self, name)
            if side.machine is None:
                if name == "source":
                    yield from self._no_source()
                continue
            if side.todo:
                yield f"{name}: {_brief(side.todo[0])}", self._carry_out(name)
            else:
                yield from self._events(name, side)
            if self.faults:
                yield from self._crashes(name, side)
        if self.faults and self.source.link == self.destination.link == "up":
            yield "the link drops", self.less().cut("source").cut("destination")

    def _events(self, name: str, side: Side) -> Iterator[Step]:
        assert side.machine is not None
        if side.inbox:
            first, rest = side.inbox[0], self.put(name, inbox=side.inbox[1:])
            yield f"{name} receives {first}", rest.feed(name, Received(from_wire(first)))
        if side.link == "cut":
            deaf = self.put(name, inbox=(), link="none")
            yield f"{name} sees the link lost", deaf.feed(name, Lost())
        for action in sorted(side.doing):
            # RECALL at the new agent waits for the old agent's lock.
            if action is not Action.RECONNECT or self.destination.machine is None:
                yield f"{name} has done {action}", self._done(name, action)
            if self.faults:
                failed = self.put(name, doing=side.doing - {action}).less()
                yield f"{name} fails to {action}", failed.feed(name, Failed(action, a_fault()))
        if self.faults:
            yield f"{name} is asked to abort", self.less().feed(name, AbortAsked(a_fault()))
            if side.machine.awaits_peer:
                yield f"{name} waits too long", self.less().feed(name, Overdue())

    def _crashes(self, name: str, side: Side) -> Iterator[Step]:
        for kept in sorted({side.journal, side.durable}):
            dead = self.less().hang_up(name)
            yield (
                f"{name} crashes, {kept} is on its disk",
                dead.put(
                    name, machine=None, journal=kept, durable=kept, todo=(), doing=frozenset()
                ),
            )

    def _no_source(self) -> Iterator[Step]:
        side = self.source
        if side.tasks == "held" and side.journal in UNCOMMITTED:
            # CRIU lets go of them when the migrating process dies.
            yield "the source's tasks thaw", self.put("source", tasks="runs")
        if self.faults and side.journal is not State.NONE and side.outcome is not Outcome.MOVED:
            fresh = self.less().put("source", machine=Source(ID, HELLO), link="none", outcome=None)
            yield (
                f"recovery starts at the source from {side.journal}",
                fresh.feed("source", Restored(side.journal)),
            )

    # ── how it happens ──

    def _carry_out(self, name: str) -> World:
        side: Side = getattr(self, name)
        output, world = side.todo[0], self.put(name, todo=side.todo[1:])
        match output:
            case Journal(state, durable):
                world = world.put(name, journal=state)
                return world.put(name, durable=state) if durable else world
            case Send(message):
                if side.link != "up":
                    return world
                peer = other(name)
                inbox = getattr(world, peer).inbox + (wire_key(message),)
                return world.put(peer, inbox=inbox)
            case Do(action):
                stops = action in (Action.RESUME, Action.DISCARD)
                doing = frozenset() if stops else side.doing
                if action is Action.FREEZE and side.tasks == "runs":
                    world = world.put(name, tasks="held")
                return world.put(name, doing=doing | {action})
            case HangUp():
                return world.hang_up(name)
            case Finish(outcome):
                if side.machine.id:  # an agent that was told nothing yet knows nothing
                    world.check_outcome(name, outcome)
                world = world.hang_up(name)
                return world.put(name, machine=None, outcome=outcome, todo=(), doing=frozenset())
        raise AssertionError(output)

    def _done(self, name: str, action: Action) -> World:
        side: Side = getattr(self, name)
        world = self.put(name, doing=side.doing - {action})
        facts = {}
        match action:
            case Action.RESUME if side.tasks == "held":
                world = world.put(name, tasks="runs")
            case Action.RESUME if side.tasks == "none":
                raise Broken("a source without tasks was told to resume")
            case Action.BURY | Action.DISCARD:
                if name == "destination" and side.tasks == "runs":
                    raise Broken("a running destination was discarded")
                world = world.put(name, tasks="none")
            case Action.PREPARE:
                world = world.put(name, tasks="held")
            case Action.RELEASE:
                if side.tasks == "none":
                    raise Broken("nothing to release")
                world = world.put(name, tasks="runs")
            case Action.CHECK:
                facts = {"ok": True}
            case Action.RECALL:
                facts = {"state": side.journal}
            case Action.RECONNECT:
                agent = replace(
                    self.destination, machine=Destination("", HELLO), link="up", inbox=()
                )
                world = replace(world, destination=agent).put(name, link="up", inbox=())
                world = world.feed("destination", Begin())
        return world.feed(name, Done(action, facts))

    def feed(self, name: str, event: object) -> World:
        machine, outputs = getattr(self, name).machine.handle(event)
        return self.put(name, machine=machine, todo=getattr(self, name).todo + outputs)

    def put(self, name: str, **changes: object) -> World:
        return replace(self, **{name: replace(getattr(self, name), **changes)})

    def less(self) -> World:
        return replace(self, faults=self.faults - 1)

    def cut(self, name: str) -> World:
        return self.put(name, link="cut") if getattr(self, name).link == "up" else self

    def hang_up(self, name: str) -> World:
        world = self.cut(other(name)) if getattr(self, name).link == "up" else self
        return world.put(name, link="none", inbox=())

    def key(self) -> object:
        """What makes two worlds the same (causes of aborts don't)."""
        return tuple(
            (
                side.machine and (side.machine.position, side.machine.id),
                tuple(_brief(output) for output in side.todo),
                side.tasks, side.journal, side.durable, side.doing, side.link, side.inbox,
                side.outcome,
            )
            for side in (self.source, self.destination)
        ) + (self.faults,)  # fmt: skip

    # ── what must hold ──

    def check(self) -> None:
        """Never two copies; and from here, with both journals, recovery leaves exactly one."""
        if self.source.tasks == "runs" and self.destination.tasks == "runs":
            raise Broken("two copies run")
        for ours in {self.source.journal, self.source.durable}:
            for theirs in {self.destination.journal, self.destination.durable}:
                self._check_recovery(ours, theirs)

    def _check_recovery(self, ours: State, theirs: State) -> None:
        decision = decide(ours, theirs)
        here, there = self.source.tasks, self.destination.tasks
        match decision.source:
            case Settle.RESUME:
                here = "runs" if here == "held" else here
            case Settle.BURY:
                here = "none"
            case Settle.WAIT | Settle.PERSON:
                raise Broken(f"nobody can decide {ours}, {theirs}")
        match decision.destination:
            case Settle.RELEASE:
                there = "runs" if there == "held" else there
            case Settle.DISCARD:
                if there == "runs":
                    raise Broken("recovery discards a running container")
                there = "none"
            case Settle.WAIT | Settle.PERSON:
                raise Broken(f"nobody can decide {ours}, {theirs}")
        if sorted((here, there)) != ["none", "runs"]:
            raise Broken(f"after recovery from {ours}, {theirs}: {here} here, {there} there")

    def check_outcome(self, name: str, outcome: Outcome) -> None:
        here, there = self.source.tasks, self.destination.tasks
        if outcome is Outcome.MOVED and (here, there) != ("none", "runs"):
            raise Broken(f"{name} says moved, but source {here}, destination {there}")
        if outcome is Outcome.ABORTED and here != "runs" and name == "source":
            raise Broken(f"the source says aborted, and its container: {here}")
        if outcome is Outcome.ABORTED and there != "none" and name == "destination":
            raise Broken(f"the destination says aborted, and holds one that is {there}")


def other(name: str) -> str:
    return "destination" if name == "source" else "source"


def _brief(output: object) -> str:
    match output:
        case Send(message):
            return f"send {wire_key(message)}"
        case Do(action):
            return f"do {action}"
        case Journal(state, durable):
            return f"journal {state}{'' if durable else ' (lazily)'}"
        case Finish(outcome):
            return f"finish {outcome}"
        case _:
            return type(output).__name__
