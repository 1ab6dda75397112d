"""What a migration will cost in each mode, before it is begun: pure functions of what was seen.

What is seen comes from observe.py (the container: what it holds, how fast it writes) and probe.py (the way to the other
host; without one, an assumed bandwidth). Where the rounds end is asked of convergence.py, the policy of the real thing.

A mode is a function in MODES from `Circumstances` to `Prediction`. Constants that name no other source come from 18
moves that `benchmarks/forecast.py` made between two lab hosts on 2 cores that were busy otherwise (Linux 6.18; 16, 256
and 1024 MiB, 10 pages a millisecond). Other machines differ; what grows most (pages, the lane) is measured each time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ckpt.ops.convergence import Course, Limits, Next, Round, expect
from ckpt.ops.leftover import IN_ROUNDS
from ckpt.ops.observe import Observed
from runtime.pagesource.compress import better_compressed

GIB = 1 << 30
BASE = 0.1
"""Seconds that the container stands still whatever it holds: freezing, CRIU's own work at both ends, the verdict.
Moves of 16 MiB took 117 to 152 ms, of which their pages were 20 to 50."""
PER_TASK = 0.004
"""Seconds for each further process: CRIU seizes, dumps and forks it. A guess."""
PER_MAPPING = 60e-6
"""Seconds for each mapping: a scan that the veil answers (docs/warm.md), and its part of dump and restore."""
PER_BYTE = 0.036 / GIB
"""Seconds per byte of memory that stays out of CRIU's images: smaps 12, CRIU's loop 14, restore 10 ms per GiB."""
LAZY_PER_BYTE = 0.3 / GIB
"""The same where memory follows (lazy): 250 to 450 ms more for 1 GiB than for 16 MiB."""
STREAM = 1.5
"""CRIU's images travel so much faster than the pages of a trial, which are hashed and kept: 1.3 to 1.7 times."""
ROUNDS = 0.75
"""Real rounds reach so much of the trial's pace: their memory isn't in a cache, and is searched for equal pages. 0.6 to
0.85 of it."""
DUMP_RATE = 900e6
"""Bytes per second that CRIU dumps and restores, pages touched for the first time."""
PER_RUN = 25e-6
"""Seconds for each range that CRIU dumps and restores besides its bytes: 18 and 10 us, or 30 and 15, for 32768 and
65536 pages that lay by themselves."""
PLACED = "private file mappings put in place"
PLACING = 800e6
"""Bytes per second that the destination writes to private mappings of files (runtime/pagecache/place.py)."""
LOOKING = 4e9
"""Bytes of shared memory per second that a look compares, with two processors: 3 to 7 GB/s for each."""
ROUND_TRIPS = 2.5
"""Between the hosts in the frozen window: sent and received, prepared and go, half of running."""
OVERHEAD = 0.01
"""Seconds of a round besides its bytes: looking, and the pipeline's filling and emptying."""
SETTLING = 0.12
"""Seconds between the last look and the freeze, in which CRIU starts at both ends: 2 to 8 MiB were written in them at
40 MB/s."""
AROUND = 1.0
"""Seconds before and after: session, preflight, lanes, cleaning up."""
PACE = 700e6
"""Bytes of memory per second that source and destination manage together, whatever the lane: reading, hashing, and
touching memory for the first time at the destination."""
LAZY_RISK = (
    "from the moment when it runs there until its last page has come the container needs both hosts; "
    "if either goes down meanwhile, what it did since then is lost"
)
ASSUMED = 117e6
"""Bytes per second of a lane that nobody measured: 1 Gbit/s, less what TCP and TLS take."""


@dataclass(frozen=True, slots=True)
class Way:
    """To the other host. rate: bytes per second; pace: bytes of this container's memory per second, compressed where
    that pays; share: bytes on the lane for each of them; round_trip: seconds."""

    rate: float
    pace: float
    share: float = 1.0
    round_trip: float = 0.001
    kind: str = ""
    basis: str = ""
    stream: float = 0.0
    """Bytes per second of CRIU's images and files; 0: as RATE."""

    def limited(self, bandwidth: float) -> Way:
        """With no more than BANDWIDTH bytes per second on the lane for memory."""
        pace = min(self.pace, bandwidth / max(self.share, 1e-3))
        return replace(self, pace=pace, stream=self.stream or self.rate)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """files, layers: bytes to send. not_warm: why the hosts can't do it; against: why nothing can be moved at all."""

    observed: Observed
    way: Way
    files: int = 0
    layers: int = 0
    limits: Limits = Limits()
    not_warm: str = ""
    against: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Of the frozen window: what it is for, and seconds; bytes, where there are some."""

    what: str
    seconds: float
    size: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """why: not possible, or how the rounds end. Bytes of memory, before they are compressed; sent: on the lanes.

    follows: bytes that come when it runs there already, and follows_s: for how long it needs both hosts and waits for
    what it touches (lazy).
    """

    mode: str
    possible: bool
    why: str = ""
    rounds: tuple[Round, ...] = ()
    window: tuple[Part, ...] = ()
    size: int = 0
    frozen: int = 0
    sent: int = 0
    total_s: float = 0.0
    notes: tuple[str, ...] = ()
    follows: int = 0
    follows_s: float = 0.0
    pre_copy: bool = False

    @property
    def name(self) -> str:
        """As the options say it."""
        return f"{self.mode} --pre-copy" if self.pre_copy else self.mode

    @property
    def downtime_s(self) -> float:
        return sum(part.seconds for part in self.window)

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "pre_copy": self.pre_copy,
            "possible": self.possible,
            "why": self.why,
            "downtime_ms": round(self.downtime_s * 1e3),
            "total_ms": round(self.total_s * 1e3),
            "follows_ms": round(self.follows_s * 1e3),
            "bytes": {
                "memory": self.size,
                "frozen": self.frozen,
                "follows": self.follows,
                "sent": self.sent,
            },
            "rounds": [
                {"bytes": one.size, "ms": round(one.seconds * 1e3, 1)} for one in self.rounds
            ],
            "window": [
                {"what": part.what, "ms": round(part.seconds * 1e3, 1), "bytes": part.size}
                for part in self.window
            ],
            "notes": list(self.notes),
        }


def warm(at: Circumstances) -> Prediction:
    """Memory is copied while it runs."""
    if reason := at.against or at.not_warm:
        return Prediction("warm", False, reason)
    seen, way = at.observed, at.way
    shared, copies = seen.content.shared, seen.content.copies
    course = expect(
        seen.content.carried + shared + copies,
        seen.writing,
        way.pace,
        at.limits,
        overhead=OVERHEAD + way.round_trip,
        settling=SETTLING,
    )
    if course.decision.next is Next.GIVE_UP:
        return Prediction("warm", False, course.decision.why, course.rounds)
    looking = shared / LOOKING
    # The last look before the freeze takes its time, too.
    last = min(shared, int(seen.shared_rate * (SETTLING + looking)))
    window = [
        *_fixed(at),
        Part("page tables of what was carried", PER_BYTE * seen.content.carried),
        Part("pages written last", course.last / way.pace, course.last),
        Part("a look at shared memory", looking),
        Part("shared memory written last", last / way.pace, last),
        Part(PLACED, copies / PLACING, copies),
        *_left(at, without=IN_ROUNDS),
    ]
    left = sum(one.size for one in seen.content.left) - shared - copies + last
    return Prediction(
        "warm",
        True,
        course.decision.why,
        (*course.rounds, course.rest),
        _worth(window),
        size=course.size + left,
        frozen=course.last + left,
        sent=int(course.size * way.share) + left + at.files + at.layers,
        total_s=_around(at) + course.seconds + SETTLING + sum(part.seconds for part in window),
        notes=_warm_notes(seen, course),
    )


def cold(at: Circumstances) -> Prediction:
    """It stands still while its memory is dumped, travels and is restored, all at once: the slowest of them decides."""
    if at.against:
        return Prediction("cold", False, at.against)
    seen = at.observed
    carried, left = seen.content.carried, sum(one.size for one in seen.content.left)
    window = [*_fixed(at), Part("private memory", carried / _dumped(at), carried), *_left(at)]
    return Prediction(
        "cold",
        True,
        window=_worth(window),
        size=carried + left,
        frozen=carried + left,
        sent=carried + left + at.files + at.layers,
        total_s=_around(at) + SETTLING + sum(part.seconds for part in window),
    )


def lazy(at: Circumstances) -> Prediction:
    """It runs there at once, and its memory follows: what is wished for by name, never chosen."""
    return _lazy(at, pre_copy=False)


def lazy_pre_copy(at: Circumstances) -> Prediction:
    """Its memory is copied once before; what is written meanwhile follows."""
    return _lazy(at, pre_copy=True)


def _lazy(at: Circumstances, *, pre_copy: bool) -> Prediction:
    if reason := at.against or at.not_warm:
        return Prediction("lazy", False, reason, pre_copy=pre_copy)
    seen, way = at.observed, at.way
    carried, left = seen.content.carried, sum(one.size for one in seen.content.left)
    before, follows = 0.0, carried
    rounds: tuple[Round, ...] = ()
    if pre_copy:
        rounds = (Round(carried, carried / way.pace + OVERHEAD + way.round_trip),)
        before = rounds[0].seconds
        follows = min(carried, int(seen.writing(before + SETTLING)))
    window = [
        *_fixed(at),
        Part("page tables of what was carried", PER_BYTE * (carried - follows)),
        Part("making place for what follows", LAZY_PER_BYTE * follows),
        *_left(at),
    ]
    copied = sum(one.size for one in rounds) + follows
    return Prediction(
        "lazy",
        True,
        "what is written after one round follows when it runs there" if pre_copy else "",
        rounds=rounds,
        window=_worth(window),
        size=copied + left,
        frozen=left,
        sent=int(copied * way.share) + left + at.files + at.layers,
        total_s=_around(at)
        + before
        + SETTLING
        + sum(part.seconds for part in window)
        + follows / way.pace,
        notes=(
            "a program that writes all over its memory waits for pages one by one: it may take many times as long",
            f"risk: {LAZY_RISK}",
        ),
        follows=follows,
        follows_s=follows / way.pace,
        pre_copy=pre_copy,
    )


MODES: Mapping[str, Callable[[Circumstances], Prediction]] = {
    "warm": warm,
    "cold": cold,
    "lazy": lazy,
    "lazy --pre-copy": lazy_pre_copy,
}
"""By name, as the options of a move say it."""
AUTO = ("warm", "cold")
"""What `--mode auto` chooses from, the first that is possible."""


def _around(at: Circumstances) -> float:
    return AROUND + (at.files + at.layers) / at.way.rate


def _dumped(at: Circumstances) -> float:
    """Bytes per second of what CRIU dumps while it travels."""
    return min(at.way.stream or at.way.rate, DUMP_RATE)


def _fixed(at: Circumstances) -> list[Part]:
    seen = at.observed
    files = int(seen.files_rate * (at.files / at.way.rate + SETTLING))
    return [
        Part("freezing, CRIU at both ends, the verdict", BASE),
        Part("processes", PER_TASK * max(0, seen.content.tasks - 1)),
        Part("mappings", PER_MAPPING * seen.content.mappings),
        Part("the way there and back", ROUND_TRIPS * at.way.round_trip),
        Part("files changed last", seen.scan_s + files / at.way.rate, files),
    ]


def _left(at: Circumstances, without: Collection[str] = ()) -> list[Part]:
    left = [one for one in at.observed.content.left if one.what not in without]
    return [
        Part(one.what, one.size / _dumped(at) + max(0, one.runs - 1) * PER_RUN, one.size)
        for one in left
    ]


def _worth(parts: list[Part]) -> tuple[Part, ...]:
    """Without those that are nothing."""
    return tuple(part for part in parts if part.seconds >= 1e-4 or part.size)


def _warm_notes(seen: Observed, course: Course) -> tuple[str, ...]:
    notes = [f"counts as written all the time: {why}" for why in seen.untracked]
    if course.decision.next is Next.FREEZE and "as fast as" in course.decision.why:
        notes.append("more rounds would not help: --abort-if-not-converging stays instead")
    return tuple(notes)


def assumed(bandwidth: float, seen: Observed) -> Way:
    """A way that nobody measured, of BANDWIDTH bytes per second: what the sample says of compressing decides."""
    sample = seen.sample
    kept = 1.0 - sample.zeros
    ratio = sample.ratio if better_compressed(bandwidth, sample.speed, sample.ratio) else 1.0
    share = kept / ratio
    pace = min(PACE, bandwidth / max(share, 1e-3))
    if ratio > 1.0:
        pace = min(pace, sample.speed / max(kept, 1e-3))
    return Way(bandwidth, pace, share, basis=f"{bandwidth / 1e6:.0f} MB/s assumed (--bandwidth)")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of each mode, and from what."""

    at: Circumstances
    predictions: tuple[Prediction, ...]
    wish: str = "auto"
    """"auto", or a name in MODES."""
    findings: tuple[dict[str, str], ...] = field(default=())

    @property
    def chosen(self) -> Prediction | None:
        """The one that would be used, as it is wished; None: none is possible."""
        names: tuple[str, ...] = AUTO if self.wish == "auto" else (self.wish,)
        if self.at.limits.must_converge:
            names = tuple(name for name in names if name != "cold")
        wanted = [one for one in self.predictions if one.name in names]
        return next((one for one in wanted if one.possible), None)

    def to_dict(self) -> dict[str, Any]:
        seen, way, chosen = self.at.observed, self.at.way, self.chosen
        return {
            "mode": chosen.mode if chosen else None,
            "pre_copy": chosen.pre_copy if chosen else False,
            "downtime_ms": round(chosen.downtime_s * 1e3) if chosen else None,
            "total_ms": round(chosen.total_s * 1e3) if chosen else None,
            "bytes": {
                "memory": seen.content.carried + sum(one.size for one in seen.content.left),
                "files": self.at.files,
                "layers": self.at.layers,
            },
            "modes": [one.to_dict() for one in self.predictions],
            "lane": way.kind,
            "rate": round(way.rate),
            "pace": round(way.pace),
            "share": round(way.share, 4),
            "round_trip_ms": round(way.round_trip * 1e3, 3),
            "basis": way.basis,
            "findings": list(self.findings),
            "observed": {
                "seconds": round(seen.seconds, 2),
                "tracker": seen.tracker,
                "processes": seen.content.tasks,
                "mappings": seen.content.mappings,
                "carried": seen.content.carried,
                "left": {one.what: one.size for one in seen.content.left},
                "writing": [
                    {"seconds": round(seconds, 4), "bytes": round(size)}
                    for seconds, size in seen.writing.points
                ],
                "zeros": round(seen.sample.zeros, 3),
                "ratio": round(seen.sample.ratio, 2),
                "untracked": list(seen.untracked),
            },
        }


def make(
    at: Circumstances, wish: str = "auto", findings: tuple[dict[str, str], ...] = ()
) -> Forecast:
    """Each mode's prediction."""
    return Forecast(at, tuple(predict(at) for predict in MODES.values()), wish, findings)
