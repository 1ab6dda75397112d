"""How long does a program stand still while its container moves to another host?

Two lab hosts with a real ssh between them. The workload (load.c) writes CLOCK_REALTIME each millisecond, and changes
pages meanwhile; the downtime is the largest step in what it wrote. Afterwards it verifies every page. Beside it, in
the same run and with the same workload:

    floor       raw CRIU: dump and restore of the smallest container on one host
    pipeline    a warm move made of our parts, on one host, with nothing between them
    runc, podman    checkpoint, copy through ssh, restore (benchmarks/peers.py sets them up)

    python -m benchmarks.downtime [--sizes 16,256,1024,4096] [--modes warm,cold] [--runs 5] [--json]

With --json the last line is a list of one object a mode, in milliseconds; lists go with "sizes_mib", and null is what
could not be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import alone, engines, workload
from benchmarks.apart import PeerFault
from benchmarks.feeder import fed
from benchmarks.results import Spread, last_line, machine, parser, ratio, say, table, words
from tests.lab import Lab

DISTRIBUTION_MIB = 256
FLOOR_MIB = 16
"""Of the container that raw CRIU dumps and restores; the smallest size where that isn't measured."""
_FAULTS = (RuntimeError, PeerFault, TimeoutError, workload.WrongPages)


class Measured:
    """All gaps in ms, by who and MiB."""

    def __init__(self) -> None:
        self._gaps: dict[tuple[str, int], list[float]] = {}

    def add(self, who: str, mib: int, gap: float) -> None:
        self._gaps.setdefault((who, mib), []).append(gap)

    def spread(self, who: str, mib: int) -> Spread:
        return Spread.of(self._gaps.get((who, mib), []))

    def row(self, who: str, sizes: list[int], what: str) -> list[float | None]:
        return [getattr(self.spread(who, mib), what) for mib in sizes]

    def has(self, who: str) -> bool:
        return any(known == who for known, _ in self._gaps)


class Contest:
    """One run of everything."""

    def __init__(self, options: argparse.Namespace, lab: Lab, folder: Path) -> None:
        self.options = options
        self.lab = lab
        self.folder = folder
        self.root = workload.build(folder)
        # A bare container writes into its root; the layer shall stay as it is.
        self._bare = shutil.copytree(self.root, folder / "bare")
        self.modes = options.modes or modes(lab)
        self.found = Measured()
        self.distribution: dict[str, list[float]] = {}
        self.totals: dict[tuple[str, int], list[float]] = {}

    def ours(self, mib: int) -> None:
        """Moves there and back, the modes in turn: what drifts on this machine hits all alike."""
        failed: set[str] = set()
        with self._running(mib) as load:
            for _, mode in itertools.product(range(self.options.runs), self.modes):
                if mode not in failed and not self._move(load, mode, mib):
                    failed.add(mode)
            load.verify()

    def _move(self, load: workload.Load, mode: str, mib: int) -> bool:
        """One move; whether it came to it."""
        try:
            with self._fed(2 * mib):
                gap, report = load.move(mode)
        except subprocess.CalledProcessError as error:
            say(f"{mode} with {mib} MiB failed: {(error.stderr or '').strip()[-500:]}")
            return False
        self.found.add(mode, mib, gap)
        self.totals.setdefault((mode, mib), []).append(report["total_ms"])
        _progress(mode, mib, gap)
        return True

    def distribute(self) -> None:
        """Many moves of one container: freezing is quick mostly, and slow now and then."""
        mib = self.options.moves_mib
        with self._running(mib) as load:
            for mode in self.modes:
                gaps = self.distribution.setdefault(mode, [])
                for _ in range(self.options.moves):
                    with self._fed(2 * mib):
                        gaps.append(load.move(mode)[0])
                    _progress(f"{mode}, move {len(gaps)}", mib, gaps[-1])
            load.verify()

    def alone(self, kind: str, mib: int) -> None:
        """The same workload on one host without ckpt."""

        def one() -> float:
            per_ms, reference = self.options.per_ms, self.options.reference
            return alone.gap_ms(kind, self._bare, mib, per_ms, reference)

        self._several(kind, mib, 3 * mib, one)

    def peer(self, name: str, others: engines.Peers, mib: int) -> None:
        if not engines.fits(mib):
            say(f"{name} with {mib} MiB: too little memory is available")
            return
        gap = others.gap_ms
        self._several(name, mib, 4 * mib, lambda: gap(name, mib, self.options.per_ms, verify=True))

    def _several(self, who: str, mib: int, feed: int, one: Callable[[], float]) -> None:
        for _ in range(self.options.runs):
            try:
                with self._fed(feed):
                    gap = one()
            except _FAULTS as fault:
                say(f"{who} with {mib} MiB failed: {fault}")
                return
            self.found.add(who, mib, gap)
            _progress(who, mib, gap)

    def _running(self, mib: int) -> contextlib.AbstractContextManager[workload.Load]:
        return workload.running(self.lab, self.root, mib, self.options.per_ms, self.folder)

    def _fed(self, mib: int) -> contextlib.AbstractContextManager[None]:
        return fed(mib + 64 if self.options.feed else 0)

    # ---- the result

    def results(self) -> list[dict[str, Any]]:
        sizes = self.options.sizes
        row = self.found.row
        floor = self.found.spread("raw", min(FLOOR_MIB, sizes[0]))
        others = {
            key: {name: row(name, sizes, what) for name in self.options.peers}
            for key, what in (
                ("peers_ms", "median"),
                ("peers_min_ms", "low"),
                ("peers_max_ms", "high"),
            )
        }
        beside = {
            f"{who}{suffix}_ms": row(who, sizes, what)
            for who in ("pipeline", "reference")
            if self.found.has(who)
            for suffix, what in (("", "median"), ("_min", "low"), ("_max", "high"))
        }
        return [
            {
                "mode": mode,
                "sizes_mib": sizes,
                "runs": self.options.runs,
                "downtime_ms": row(mode, sizes, "median"),
                "downtime_min_ms": row(mode, sizes, "low"),
                "downtime_max_ms": row(mode, sizes, "high"),
                "total_ms": [Spread.of(self.totals.get((mode, mib), [])).median for mib in sizes],
                "floor_ms": floor.median,
                "floor_min_ms": floor.low,
                "floor_max_ms": floor.high,
                **beside,
                **others,
                "distribution": self._distribution(mode),
                "machine": machine(),
            }
            for mode in self.modes
        ]

    def _distribution(self, mode: str) -> dict[str, Any] | None:
        gaps = Spread.of(self.distribution.get(mode, []))
        if not gaps.values:
            return None
        p95 = gaps.percentile(0.95)
        return {
            "mib": self.options.moves_mib,
            "moves": len(gaps.values),
            "median_ms": gaps.median,
            "p95_ms": p95,
            "min_ms": gaps.low,
            "max_ms": gaps.high,
            "p95_by_median": ratio(p95, gaps.median),
            "all_ms": [round(gap, 1) for gap in gaps.values],
        }

    def show(self) -> None:
        sizes = self.options.sizes
        everybody = [*self.modes, "pipeline", "reference", *self.options.peers]
        heads = ["downtime in ms", *(f"{mib} MiB" for mib in sizes), "last ÷ first"]
        rows = []
        for who in everybody:
            if self.found.has(who):
                medians = self.found.row(who, sizes, "median")
                cells = [str(self.found.spread(who, mib)) for mib in sizes]
                rows.append([who, *cells, ratio(medians[-1], medians[0])])
        say()
        table(heads, rows)
        say(f"median (smallest..largest) of {self.options.runs} runs; load {machine()['load']}")
        small = min(FLOOR_MIB, sizes[0])
        say(
            f"floor: raw CRIU, dump and restore of {small} MiB: {self.found.spread('raw', small)} ms"
        )
        self._show_ratios(sizes)
        rows = [[mode, self._distribution(mode)] for mode in self.modes]
        lines = [
            [mode, d["median_ms"], d["p95_ms"], d["min_ms"], d["max_ms"], d["p95_by_median"]]
            for mode, d in rows
            if isinstance(d, dict)
        ]
        if lines:
            say()
            what = f"{self.options.moves} moves of {self.options.moves_mib} MiB"
            table([what, "median", "p95", "smallest", "largest", "p95 ÷ median"], lines)

    def _show_ratios(self, sizes: list[int]) -> None:
        if "warm" not in self.modes:
            return
        warm = self.found.row("warm", sizes, "median")
        rows = []
        for who in ("pipeline", "reference", *self.options.peers):
            if self.found.has(who):
                theirs = self.found.row(who, sizes, "median")
                ratios = [ratio(a, b) for a, b in zip(warm, theirs, strict=True)]
                rows.append([f"warm ÷ {who}", *ratios])
        floor = self.found.spread("raw", min(FLOOR_MIB, sizes[0])).median
        if floor:
            rows.append(["warm ÷ floor", *(ratio(value, floor) for value in warm)])
        rows.append(["warm ÷ warm of the first", *(ratio(value, warm[0]) for value in warm)])
        say()
        table(["ratios of medians", *(f"{mib} MiB" for mib in sizes)], rows)


def modes(lab: Lab) -> list[str]:
    """Those that `ckpt migrate` of this version has."""
    said = lab["a"].ckpt("migrate", "--help")
    found = re.search(r"--mode \[([a-z|]+)\]", said)
    assert found, said
    return [mode for mode in ("warm", "cold", "lazy") if mode in found[1].split("|")]


def _progress(who: str, mib: int, gap: float) -> None:
    print(f"  {mib:5d} MiB  {who:<20} {gap:9.1f} ms", file=sys.stderr, flush=True)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        lab, folder = stack.enter_context(workload.hosts(options.storage))
        contest = Contest(options, lab, folder)
        others = _peers(options, stack, lab, contest.root)
        contest.alone("raw", min(FLOOR_MIB, options.sizes[0]))
        for mib in options.sizes:
            contest.ours(mib)
            if options.pipeline:
                contest.alone("pipeline", mib)
            if options.reference:
                contest.alone("reference", mib)
            for name in options.peers if others else ():
                contest.peer(name, others, mib)
        if options.moves:
            contest.distribute()
        contest.show()
        return contest.results()


def _peers(options: argparse.Namespace, stack: contextlib.ExitStack, lab: Lab, root: Path) -> Any:
    if not options.peers:
        return None
    try:
        return stack.enter_context(engines.opened(lab, root))
    except PeerFault as fault:
        say(f"without peers: {fault}")
        return None


def options_of(argv: list[str] | None = None) -> argparse.Namespace:
    made = parser(__doc__, storage="tmpfs", sizes=[16, 256, 1024, 4096], per_ms=True)
    made.add_argument("--modes", type=words, help="default: all that ckpt migrate has")
    made.add_argument("--moves", type=int, default=20, help="for the distribution; 0: none")
    made.add_argument("--moves-mib", type=int, default=DISTRIBUTION_MIB)
    made.add_argument("--peers", type=words, default=list(engines.KINDS), help="'': none")
    made.add_argument(
        "--no-pipeline", dest="pipeline", action="store_false", help="not the move made of parts"
    )
    made.add_argument(
        "--reference", type=Path, metavar="DIR", help="another pipeline: see benchmarks/alone.py"
    )
    made.add_argument(
        "--no-feed", dest="feed", action="store_false", help="take memory as it comes: feeder.py"
    )
    options = made.parse_args(argv)
    options.sizes.sort()
    if unknown := set(options.peers) - set(engines.KINDS):
        made.error(f"no such peers: {', '.join(unknown)}")
    return options


def main(argv: list[str] | None = None) -> None:
    options = options_of(argv)
    last_line(options, measure(options))


if __name__ == "__main__":
    main()
