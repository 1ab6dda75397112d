"""What a migration's report is told of rounds and of the frozen window, however they end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ckpt.ops.carry import Carrier
from ckpt.ops.convergence import Round
from ckpt.ops.departure import Departure
from ckpt.ops.report import Report

_WINDOW = {
    "frozen": "CRIU is let go to freeze",
    "images": "all tasks are frozen; CRIU writes images",
    "files": "the last file changes are sent",
    "dumped": "CRIU has dumped everything",
}
"""Names in Departure.times."""


@contextlib.contextmanager
def rounds(report: Report, carrier: Carrier) -> Iterator[Callable[[], None]]:
    """Around CARRIER's rounds; what it gives is to be called at the end of each."""
    ends: list[tuple[int, int]] = []

    def ended() -> None:
        ends.append((time.time_ns(), carrier.written))

    try:
        yield ended
        ended()
    finally:
        report.rounds = _rounds(carrier, ends, report.timeline.began_ns)
        report.rounds_why = carrier.why


def _rounds(carrier: Carrier, ends: list[tuple[int, int]], began_ns: int) -> list[dict[str, float]]:
    """Those that came to their end, and what was sent after them while the container ran still."""
    every = [*carrier.done, Round(carrier.rest, carrier.rest_s)]
    found: list[dict[str, float]] = []
    before = 0
    for number, (one, (at, written)) in enumerate(zip(every, ends, strict=False)):
        dirtied = every[number + 1].size if number + 1 < len(ends) else 0
        found.append(
            {
                "bytes": one.size,
                "ms": round(one.seconds * 1e3, 1),
                "sent": written - before,
                "at_ms": round((at - began_ns) / 1e6 - one.seconds * 1e3, 1),
                "rate": round(one.size / one.seconds) if one.seconds else 0,
                "dirty_rate": round(dirtied / one.seconds) if one.seconds else 0,
            }
        )
        before = written
    return found


@contextlib.contextmanager
def window(report: Report, departure: Departure, carrier: Carrier | None) -> Iterator[None]:
    """Around the frozen window, as far as it lies at the source."""
    try:
        yield
        report.timeline.moment("everything is sent")
    finally:
        report.frozen_ns = departure.times.get("frozen", 0)
        for name, what in _WINDOW.items():
            if name in departure.times:
                report.timeline.moment(what, departure.times[name])
        if carrier is not None and carrier.last_ns:
            report.timeline.moment("the pages written last are read", carrier.last_ns)
