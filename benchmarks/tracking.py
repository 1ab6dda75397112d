"""What does it cost a program that its written memory is found?

Redis under redis-benchmark, on this machine's two or more processors: requests per second before it is tracked, while
it is, and after. While it is tracked, each --every seconds a round as a migration's: the question what was written, and
the reading of it. For each tracker that this host has.

    python -m benchmarks.tracking [--mib 256] [--seconds 5] [--runs 5] [--json]

Times in milliseconds. stop: for how long the process's main thread was stopped to begin with (wp-async); "-" where a
tracker stops nothing, or does not tell.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import resp
from benchmarks.results import Spread, last_line, machine, parser, ratio, say, table, words
from runtime.pagesource.read import Buffer, TaskReader, batches
from runtime.tracking import pagemap, population, wp_async
from runtime.tracking.compare import Compare
from runtime.tracking.soft_dirty import SoftDirty
from runtime.tracking.tracker import Tracker
from runtime.tracking.vmas import anonymous
from runtime.tracking.wp_async import WpAsync

_READ = 1 << 20


def trackers() -> dict[str, Callable[[], Tracker]]:
    """By name, those that work here."""
    found: dict[str, Callable[[], Tracker]] = {}
    if wp_async.supported():
        found[WpAsync.name] = lambda: WpAsync(anonymous)
    if pagemap.supports_soft_dirty():
        found[SoftDirty.name] = lambda: SoftDirty(anonymous)
    found[Compare.name] = lambda: Compare(anonymous)
    return found


class Rounds:
    """Follows a process in a thread of its own while the block runs."""

    def __init__(self, tracker: Tracker, pid: int, every: float) -> None:
        self._tracker, self._pid, self._every = tracker, pid, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._buffer = Buffer(_READ)
        self.fault: BaseException | None = None
        self.scans: list[float] = []
        """Milliseconds of each question; the first is about everything."""
        self.written: list[float] = []
        """MiB that it named."""

    def __enter__(self) -> Rounds:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._tracker.stop()
        if self.fault is not None:
            raise self.fault

    def wait(self, count: int) -> None:
        """Until it has asked so often."""
        while len(self.scans) < count and self.fault is None:
            time.sleep(0.01)

    def _run(self) -> None:
        try:
            self._tracker.start([self._pid])
            with TaskReader(self._pid) as reader:
                while True:
                    self._round(reader)
                    if self._over.wait(self._every):
                        return
        except BaseException as fault:
            self.fault = fault

    def _round(self, reader: TaskReader) -> None:
        began = time.perf_counter()
        dirty = self._tracker.dirty(self._pid)
        self.scans.append((time.perf_counter() - began) * 1e3)
        with population.opened(self._pid) as file:
            there = population.populated(file, dirty)
        self.written.append(sum(end - start for start, end in there) / (1 << 20))
        for batch in batches(there, _READ):
            at = 0
            read, _ = reader.read(batch, self._buffer)
            for start, end in read if self._tracker.compares else ():
                size = end - start
                self._tracker.taken(self._pid, start, self._buffer.view[at : at + size])
                at += size


def one(make: Callable[[], Tracker], pid: int, path: Path, options: Any) -> dict[str, Any]:
    """One run of one tracker."""
    seconds = options.seconds
    before = resp.rate(path, seconds)
    tracker = make()
    with Rounds(tracker, pid, options.every) as rounds:
        rounds.wait(1)
        during = resp.rate(path, seconds)
        rounds.wait(2)
        why = tracker.why_all(pid)
    if why:
        say(f"{tracker.name} could not track it: {why}")
    after = resp.rate(path, seconds)
    stopped = getattr(tracker, "stopped_ns", {}).get(pid)
    return {
        "before": before,
        "during": during,
        "after": after,
        "ratio": during / before if before else 0.0,
        "ratio_after": after / before if before else 0.0,
        "first_ms": rounds.scans[0],
        "scans_ms": rounds.scans[1:],
        "written_mib": rounds.written[1:],
        "stop_ms": stopped / 1e6 if stopped else None,
    }


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    scans = Spread.of([value for run in runs for value in run["scans_ms"]])
    stops = Spread.of([run["stop_ms"] for run in runs if run["stop_ms"] is not None])
    middle = {key: Spread.of([run[key] for run in runs]) for key in ("before", "during", "after")}
    shares = [run["ratio"] for run in runs]
    return {
        "tracker": name,
        "before": middle["before"].median,
        "during": middle["during"].median,
        "after": middle["after"].median,
        "ratio": round(sorted(shares)[len(shares) // 2], 3),
        "ratio_min": round(min(shares), 3),
        "ratio_max": round(max(shares), 3),
        "ratio_after": ratio(middle["after"].median, middle["before"].median),
        "first_ms": Spread.of([run["first_ms"] for run in runs]).median,
        "scan_ms": scans.median,
        "scan_min_ms": scans.low,
        "scan_max_ms": scans.high,
        "written_mib": Spread.of([v for run in runs for v in run["written_mib"]]).median,
        "stop_ms": _fine(stops.values, 0.5),
        "stop_max_ms": _fine(stops.values, 1.0),
    }


def _fine(values: tuple[float, ...], share: float) -> float | None:
    """With more digits than Spread has: these are fractions of a millisecond."""
    if not values:
        return None
    return round(sorted(values)[min(int(share * len(values)), len(values) - 1)], 3)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    made = trackers()
    wanted = [name for name in (options.trackers or made) if name in made]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    keys = max(1, options.mib * (1 << 20) // resp.VALUE)
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-") as name:
        folder = Path(name)
        with resp.server(folder) as (pid, path):
            resp.fill(path, keys)
            with resp.clients(path, keys):
                resp.rate(path, min(1.0, options.seconds))  # until all its connections work
                for _ in range(options.runs):
                    for tracker in wanted:
                        runs[tracker].append(one(made[tracker], pid, path, options))
    rows = [summary(name, found) for name, found in runs.items()]
    say(f"Redis with {options.mib} MiB, {options.runs} runs; load {machine()['load']}")
    table(
        ["tracker", "req/s before", "during", "after", "during ÷ before", "scan ms", "slowest",
         "first", "MiB a round", "stop ms", "longest"],
        [
            [row[key] for key in ("tracker", "before", "during", "after", "ratio", "scan_ms",
                                  "scan_max_ms", "first_ms", "written_mib", "stop_ms",
                                  "stop_max_ms")]
            for row in rows
        ],
    )  # fmt: skip
    return {
        "mib": options.mib,
        "runs": options.runs,
        "every_s": options.every,
        "machine": machine(),
        "trackers": rows,
    }


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--mib", type=int, default=256, help="of values; default: %(default)s")
    made.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    made.add_argument("--every", type=float, default=0.5, help="seconds between two rounds")
    made.add_argument("--trackers", type=words, help="default: all that work here")
    options = made.parse_args(argv)
    last_line(options, measure(options))


if __name__ == "__main__":
    main()
