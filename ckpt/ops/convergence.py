"""When to stop copying memory while the container runs, and freeze: a pure function of what the rounds showed.

A round sends what was written during the one before it. If the container writes slower than the lane carries, rounds
shrink geometrically, down to a floor where a round's own fixed cost (scanning, a few milliseconds) lets as much be
written as it sends. If it writes faster, they never shrink, and every further round only costs bandwidth.

The constants come from measurements (docs/warm.md): a scan of 1 GiB takes 2 to 5 ms and a round trip of bookkeeping
about as long, so rounds below SMALL bytes gain nothing; a round that is not smaller than SHRINKS of its predecessor
twice in a row has found its floor, once being often a checkpoint or a garbage collection of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

SMALL = 1 << 20
"""Bytes: less than this is not worth another round."""
SHRINKS = 0.75
"""A round that sends more than this share of the one before does not shrink."""
PATIENCE = 2
"""Rounds in a row that may fail to shrink."""


class Next(Enum):
    ROUND = "another round"
    FREEZE = "freeze"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Round:
    """One round: bytes of memory sent, and seconds that it took."""

    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user allows. max_downtime: seconds for the last pages in the frozen window."""

    max_downtime: float = 0.05
    max_rounds: int = 20
    must_converge: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    next: Next
    why: str


def decide(rounds: Sequence[Round], dirty: int, limits: Limits) -> Decision:
    """ROUNDS are over; DIRTY bytes have been written since the last began to be read.

    Before the first round (no ROUNDS) everything is dirty, and there is always a first round: nothing is known of the
    lane yet.
    """
    if not rounds:
        return Decision(Next.ROUND, "everything is still to be sent")
    rate = throughput(rounds)
    last = dirty / rate
    if last <= limits.max_downtime:
        return Decision(Next.FREEZE, f"the rest takes {last * 1e3:.0f} ms")
    if dirty <= SMALL:
        return Decision(Next.FREEZE, "the rest is too little for another round")
    stuck = _not_shrinking(rounds, dirty)
    if stuck < PATIENCE and len(rounds) < limits.max_rounds:
        return Decision(Next.ROUND, f"the rest would take {last * 1e3:.0f} ms")
    reason = (
        f"it writes as fast as it is sent: {dirty >> 20} MiB a round"
        if stuck >= PATIENCE
        else f"{len(rounds)} rounds were not enough"
    )
    if limits.must_converge:
        return Decision(Next.GIVE_UP, reason)
    return Decision(Next.FREEZE, reason)


def throughput(rounds: Sequence[Round]) -> float:
    """Bytes per second of the lane, from its largest round: small ones measure their fixed cost."""
    best = max(rounds, key=lambda one: one.size)
    return max(best.size / best.seconds if best.seconds > 0 else 0.0, 1.0)


def _not_shrinking(rounds: Sequence[Round], dirty: int) -> int:
    """How many of the last sizes in a row, DIRTY being the newest, did not shrink."""
    sizes = [one.size for one in rounds] + [dirty]
    count = 0
    for before, after in zip(reversed(sizes[:-1]), reversed(sizes[1:]), strict=True):
        if after <= before * SHRINKS:
            break
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class Course:
    """How the copying goes. rest: what is sent when no more rounds follow, while it runs still; last: bytes that are
    written meanwhile, and travel in the frozen window."""

    rounds: tuple[Round, ...]
    rest: Round
    last: int
    decision: Decision

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(one.size for one in self.rounds) + self.rest.size + self.last

    @property
    def seconds(self) -> float:
        """While it runs."""
        return sum(one.seconds for one in self.rounds) + self.rest.seconds


def expect(
    memory: int,
    written: Callable[[float], float],
    pace: float,
    limits: Limits,
    *,
    overhead: float = 0.0,
    settling: float = 0.0,
) -> Course:
    """The course that `decide` would take, of MEMORY bytes of which WRITTEN(seconds) are written in that time.

    PACE: bytes of memory per second; OVERHEAD: seconds of a round besides sending; SETTLING: seconds between the end of
    the rest and the moment when all is frozen.
    """

    def send(size: int) -> Round:
        return Round(size, size / pace + overhead)

    def dirtied(seconds: float) -> int:
        return min(memory, int(written(seconds)))

    rounds: list[Round] = []
    dirty = memory
    while (decision := decide(rounds, dirty, limits)).next is Next.ROUND:
        rounds.append(send(dirty))
        dirty = dirtied(rounds[-1].seconds)
    rest = send(dirty)
    return Course(tuple(rounds), rest, dirtied(rest.seconds + settling), decision)
