"""How long does a container stand still for a checkpoint that leaves it running, beside a warm migration of it?

Two lab hosts; a container with a process of each size, its memory incompressible. In each run: `dump --leave-running`
in each mode, then a warm move to the other host. The pause is the largest gap in the workload's own ticks
(CLOCK_REALTIME, one a millisecond). Afterwards the workload verifies every page, and so does a container that is
restored from the last warm checkpoint.

    python -m benchmarks.pause [--sizes 16,1024,4096] [--ways migration,cold,warm] [--runs 5] [--json]
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.results import Spread, last_line, machine, parser, ratio, say, table, words
from tests.lab import Lab

CHECKPOINT = "pause"
MIGRATION = "migration"


def dump(load: workload.Load, mode: str) -> tuple[float, float, dict[str, Any]]:
    """The gap and the whole in ms, and ckpt's report; the checkpoint is there afterwards."""
    load.here.run(["ckpt", "checkpoints", "rm", CHECKPOINT], check=False)
    load.ticks.wait_on()
    since = time.time_ns()
    report = load.here.ckpt(
        *("dump", workload.NAME, "--leave-running", "--mode", mode, "--as", CHECKPOINT),
        json_output=True,
        timeout=600,
    )
    total = (time.time_ns() - since) / 1e6
    load.ticks.wait_on()
    return load.ticks.gap_ms(since), total, report


def verify_restored(load: workload.Load) -> None:
    """Of a container from the checkpoint; the original is gone. Raises WrongPages."""
    load.here.ckpt("rm", "-f", workload.NAME)
    load.here.ckpt("restore", CHECKPOINT)
    load.verify()


def measure_size(
    lab: Lab, root: Path, mib: int, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    gaps: dict[str, list[float]] = defaultdict(list)
    said: dict[str, list[float]] = defaultdict(list)
    totals: dict[str, list[float]] = defaultdict(list)
    with workload.running(lab, root, mib, options.per_ms, folder) as load:
        for run in range(options.runs):
            for way in options.ways:
                if way == MIGRATION:
                    gap, report = load.move("warm")
                    said[way].append(report["downtime_ms"])
                    totals[way].append(report["total_ms"])
                else:
                    gap, total, report = dump(load, way)
                    said[way].append(report["pause_ms"])
                    totals[way].append(total)
                gaps[way].append(gap)
            if run < options.runs - 1:
                load.here.ckpt("checkpoints", "rm", CHECKPOINT)
        load.verify()
        verify_restored(load)
        load.here.ckpt("checkpoints", "rm", CHECKPOINT)
    base = Spread.of(gaps.get(MIGRATION, [])).median
    return {
        "mib": mib,
        "ways": {
            way: {
                "pause_ms": Spread.of(found).median,
                "pauses_ms": [round(gap, 1) for gap in found],
                "said_ms": Spread.of(said[way]).median,
                "total_ms": Spread.of(totals[way]).median,
                "to_migration": ratio(Spread.of(found).median, base),
            }
            for way, found in gaps.items()
        },
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    # The last one's checkpoint is restored.
    options.ways.sort(key=(MIGRATION, "cold", "warm").index)
    found = []
    with workload.hosts(options.storage) as (lab, folder):
        root = workload.build(folder)
        for mib in options.sizes:
            one = measure_size(lab, root, mib, options, folder)
            found.append(one)
            say(f"{mib} MiB")
            table(
                ["", "pause ms", "ckpt says", "÷ migration", "total ms"],
                [
                    [
                        way,
                        str(Spread.of(row["pauses_ms"])),
                        row["said_ms"],
                        row["to_migration"],
                        row["total_ms"],
                    ]
                    for way, row in one["ways"].items()
                ],
            )
            say()
    return {"sizes": found, "storage": options.storage, "machine": machine()}


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, storage="disk", sizes=[16, 1024, 4096], per_ms=True)
    made.add_argument("--ways", type=words, default=[MIGRATION, "cold", "warm"])
    options = made.parse_args(argv)
    last_line(options, measure(options))


if __name__ == "__main__":
    main()
