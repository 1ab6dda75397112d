"""Where do the milliseconds of the frozen window go?

One container moves between two lab hosts; both logs of CRIU are followed while they are written, and laid on one time
line with the workload's own clock (all on this machine, so there is but one clock). Zero is the workload's last tick at
the source. Printed: landmarks of both sides, the longest steps between two lines of a log, and ckpt's own phases.

    python -m benchmarks.frozen [--mib 256] [--mode warm] [--runs 3] [--steps 12] [--log] [--json]

The run with the median gap is shown. --log prints every line of both logs within the window.
CRIU writes a few thousand lines meanwhile, which take time too: 5 ms or so.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass
from typing import Any

from benchmarks import workload
from benchmarks.criu_log import Line, Tail, pauses
from benchmarks.results import Spread, last_line, machine, parser, say, table
from tests.lab import Lab

DUMP = [
    ("freezing begins", r"Running pre-dump scripts"),
    ("first task is seized", r"(seized|Seized) task|SEIZE \d+"),
    ("all are frozen", r"Collecting? (all )?(ext|mountinfo|namespaces|tasks)|cg: Dumping cgroups|irmap:"),
    ("network is locked", r"Running network-lock scripts|Lock network|network_lock"),
    ("first process", r"Dumping task \(pid: "),
    ("first core", r"Dumping core \(pid: "),
    ("namespaces", r"Dumping .*namespace|Dump namespaces"),
    ("mounts", r"mnt: .*[Dd]ump"),
    ("everything is dumped", r"Running post-dump scripts"),
    ("end", r"Dumping finished successfully"),
]  # fmt: skip
RESTORE = [
    ("starts with the images", r"cg: Preparing|Forking task|Restoring namespaces"),
    ("first fork", r"Forking task with"),
    ("network is plugged in", r"Running setup-namespaces scripts"),
    ("mounts", r"mnt: Restoring mount namespace|mnt: Start with"),
    ("files", r"Opening fdinfo"),
    ("restorer", r"Restore via sigreturn|Remap rst|Joining zombies"),
    ("tasks are restored", r"Running post-restore scripts"),
    ("network is unlocked", r"Running network-unlock scripts|Unlock network"),
    ("tasks run", r"Running post-resume scripts"),
]
_AROUND_NS = 5_000_000
"""Lines so long before and after the gap are shown, too."""


@dataclass(frozen=True, slots=True)
class Run:
    """One move. begin, end: the workload's last tick before and its first after, ns of CLOCK_REALTIME."""

    begin: int
    end: int
    dump: list[Line]
    restore: list[Line]
    report: dict[str, Any]

    @property
    def gap_ms(self) -> float:
        return (self.end - self.begin) / 1e6

    def ms(self, at_ns: int) -> float:
        return round((at_ns - self.begin) / 1e6, 1)

    def landmarks(self) -> list[tuple[float, str, str]]:
        """(ms, side, what) in order; the first line within the window that tells of each."""
        found = [
            (0.0, "source", "workload: last tick"),
            (round(self.gap_ms, 1), "there", "first tick"),
        ]
        for side, marks, log in (("source", DUMP, self.dump), ("there", RESTORE, self.restore)):
            for what, pattern in marks:
                line = next((li for li in self._inside(log) if re.search(pattern, li.text)), None)
                if line is not None:
                    found.append((self.ms(line.at_ns), side, f"criu: {what}"))
        return sorted(found, key=lambda mark: mark[0])

    def _inside(self, log: list[Line]) -> list[Line]:
        begin, end = self.begin - _AROUND_NS, self.end + _AROUND_NS
        return [line for line in log if begin <= line.at_ns <= end]

    def steps(self, count: int) -> list[tuple[float, float, str, str]]:
        """(ms it took, from ms, side, text of both lines), the longest first."""
        found = []
        for side, log in (("source", self.dump), ("there", self.restore)):
            for early, late in pauses(log, self.begin - _AROUND_NS, self.end, count):
                took = round((late.at_ns - early.at_ns) / 1e6, 1)
                text = f"{early.text[:60]} → {late.text[:40]}"
                found.append((took, self.ms(early.at_ns), side, text))
        return sorted(found, reverse=True)[:count]

    def whole_log(self) -> list[tuple[float, str, str]]:
        both = [("source", self.dump), ("there", self.restore)]
        found = [
            (self.ms(li.at_ns), side, li.text) for side, log in both for li in self._inside(log)
        ]
        return sorted(found, key=lambda line: line[0])


def move(lab: Lab, load: workload.Load, mode: str) -> Run:
    here, there = load.here, load.there
    since = time.time_ns()
    with (
        Tail(here.root, "run/c/*/criu/dump.log") as dump,
        Tail(there.root, "run/c/*/criu/restore.log") as restore,
    ):
        _, report = load.move(mode)
    begin, end = load.ticks.gap(since)
    return Run(begin, end, dump.lines(), restore.lines(), report)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with workload.hosts(options.storage) as (lab, folder):
        root = workload.build(folder)
        with workload.running(lab, root, options.mib, options.per_ms, folder) as load:
            runs = [move(lab, load, options.mode) for _ in range(options.runs)]
            load.verify()
    shown = sorted(runs, key=lambda run: run.gap_ms)[len(runs) // 2]
    show(shown, runs, options)
    return {
        "mib": options.mib,
        "mode": options.mode,
        "gaps_ms": [round(run.gap_ms, 1) for run in runs],
        "shown_ms": round(shown.gap_ms, 1),
        "landmarks": [
            {"ms": at, "side": side, "what": what} for at, side, what in shown.landmarks()
        ],
        "steps": [
            {"ms": took, "from_ms": at, "side": side, "what": text}
            for took, at, side, text in shown.steps(options.steps)
        ],
        "report": shown.report,
        "machine": machine(),
    }


def show(run: Run, runs: list[Run], options: argparse.Namespace) -> None:
    gaps = Spread.of([one.gap_ms for one in runs])
    say(
        f"{options.mib} MiB, {options.mode}: {gaps} ms in {len(runs)} runs; load {machine()['load']}"
    )
    say()
    table(["at ms", "side", "landmark"], [[f"{at:8.1f}", *rest] for at, *rest in run.landmarks()])
    say()
    steps = [[f"{took:6.1f}", f"{at:8.1f}", *rest] for took, at, *rest in run.steps(options.steps)]
    table(["took ms", "from ms", "side", "longest steps between two lines"], steps)
    say()
    say(f"ckpt: downtime {run.report['downtime_ms']} ms, phases {run.report['phases_ms']}")
    if options.log:
        say()
        for at, side, text in run.whole_log():
            say(f"{at:8.1f} {side:6} {text}")


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, runs=3, storage="tmpfs", per_ms=True)
    made.add_argument("--mib", type=int, default=256)
    made.add_argument("--mode", default="warm")
    made.add_argument("--steps", type=int, default=12, help="so many of the longest")
    made.add_argument("--log", action="store_true", help="every line within the window")
    options = made.parse_args(argv)
    last_line(options, measure(options))


if __name__ == "__main__":
    main()
