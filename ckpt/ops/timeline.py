"""When what happened in a migration, at both hosts, on the source's clock (ns since the epoch)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

HERE, THERE = "source", "destination"
SAMPLES = 2000
"""Of the throughput, at most; more than a page has pixels."""
INTERVAL = 0.025

# What a destination tells, and what a person reads.
ARRIVALS = {
    "lane": "the lane is open",
    "begun": "a place is reserved",
    "criu": "CRIU waits for images",
    "ended": "all images are here",
    "pages": "all pages are here",
    "prepared": "restored, nothing has run",
    "running": "all tasks run",
}


@dataclass(frozen=True, slots=True)
class Span:
    host: str
    what: str
    begin_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Moment:
    host: str
    what: str
    at_ns: int


@dataclass(slots=True)
class Timeline:
    """began_ns: the zero of everything that is told. samples: (ns, bytes handed to the lanes so far)."""

    began_ns: int = field(default_factory=time.time_ns)
    spans: list[Span] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    samples: list[tuple[int, int]] = field(default_factory=list)

    def phase(self, what: str, begin_ns: int, end_ns: int) -> None:
        """At the source, whose phases follow each other."""
        self.spans.append(Span(HERE, what, begin_ns, end_ns))

    def moment(self, what: str, at_ns: int = 0, *, host: str = HERE) -> None:
        self.moments.append(Moment(host, what, at_ns or time.time_ns()))

    def arrivals(self, told: Mapping[str, Any], offset_ns: int) -> None:
        """What the destination says of itself, by names of ARRIVALS, on its clock, which is OFFSET_NS ahead of ours.

        It may be asked more than once: what it said last counts.
        """
        self.moments = [one for one in self.moments if one.host != THERE]
        self.spans = [one for one in self.spans if one.host != THERE]
        times = [
            (int(told[name]) - offset_ns, what)
            for name, what in ARRIVALS.items()
            if isinstance(told.get(name), int)
        ]
        before = 0
        for at, what in sorted(times):
            self.moment(what, at, host=THERE)
            if before:
                self.spans.append(Span(THERE, what, before, at))
            before = at

    def to_dict(self, frozen_ns: int) -> dict[str, Any]:
        """In milliseconds since the beginning; the window's since the freeze."""

        def ms(ns: int, since: int = self.began_ns) -> float:
            return round((ns - since) / 1e6, 3)

        moments = sorted(self.moments, key=lambda one: one.at_ns)
        window = [one for one in moments if frozen_ns and one.at_ns >= frozen_ns]
        return {
            "timeline": [
                {
                    "host": one.host,
                    "what": one.what,
                    "begin_ms": ms(one.begin_ns),
                    "end_ms": ms(one.end_ns),
                }
                for one in self.spans
            ],
            "moments": [
                {"host": one.host, "what": one.what, "at_ms": ms(one.at_ns)} for one in moments
            ],
            "window": [
                {"host": one.host, "what": one.what, "at_ms": ms(one.at_ns, frozen_ns)}
                for one in window
            ],
            "throughput": [[ms(at), count] for at, count in self.samples],
        }


class Sampler:
    """Notes now and then how many bytes have been sent. Use as a context manager."""

    def __init__(self, timeline: Timeline, sent: Callable[[], int]) -> None:
        self._timeline = timeline
        self._sent = sent
        self._interval = INTERVAL
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        samples, sent = self._timeline.samples, self._sent()
        if len(samples) > 1 and samples[-1][1] == samples[-2][1] == sent:
            samples[-1] = (time.time_ns(), sent)  # nothing moves: its end is enough
            return
        samples.append((time.time_ns(), sent))
        if len(samples) > SAMPLES:
            del samples[1::2]
            self._interval *= 2
