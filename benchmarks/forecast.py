"""How far off is `ckpt forecast`? Predicted by real downtime, total time, bytes on the lanes, and bytes frozen; of lazy
moves also how much follows, and for how long.

Two lab hosts; containers with incompressible memory of each size, of which so many random pages a millisecond are
written. Each run asks for a forecast and then moves, the modes in turn. 1.00 is a prediction that came true, 0.50 half
of what came.

    python -m benchmarks.forecast [--sizes 16,256,1024] [--per-ms 1,10,50] [--modes warm,cold,lazy+pre-copy] [--runs 3]
        [--json]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.results import (
    Spread,
    last_line,
    machine,
    numbers,
    parser,
    ratio,
    say,
    table,
)
from tests.lab import Lab

COLUMNS = (
    "downtime_ms",
    "total_ms",
    "sent_mib",
    "frozen_mib",
    "rounds",
    "follows_ms",
    "follows_mib",
)
PRE_COPY = "+pre-copy"
MIB = 1 << 20


def one(load: workload.Load, mode: str, seconds: float) -> dict[str, Any]:
    """A forecast, and the move that it was for."""
    load.ticks.wait_on()
    pre_copy = mode.endswith(PRE_COPY)
    mode, more = mode.removesuffix(PRE_COPY), ["--pre-copy"] if pre_copy else []
    forecast = load.here.ckpt(
        *("forecast", workload.NAME, load.there.name),
        *("--mode", mode, "--seconds", str(seconds), *more),
        json_output=True,
    )
    wanted = (mode, pre_copy)
    said = next(one for one in forecast["modes"] if (one["mode"], one["pre_copy"]) == wanted)
    _, came = load.move(mode, *more)
    lazy = came["lazy"] or {"whole_ms": 0, "bytes": 0}
    # CRIU's own part of the frozen bytes is on the lane of the images, with what describes the tasks.
    frozen = came["bytes"]["images"] + came["bytes"]["memory_frozen"]
    return {
        "said": {
            "downtime_ms": said["downtime_ms"],
            "total_ms": said["total_ms"],
            "sent_mib": said["bytes"]["sent"] / MIB,
            "frozen_mib": said["bytes"]["frozen"] / MIB,
            "rounds": len(said["rounds"]),
            "follows_ms": said["follows_ms"],
            "follows_mib": said["bytes"]["follows"] / MIB,
        },
        "came": {
            "downtime_ms": came["downtime_ms"],
            "total_ms": came["total_ms"],
            "sent_mib": came["bytes"]["total"] / MIB,
            "frozen_mib": frozen / MIB,
            "rounds": len(came["rounds"]),
            "follows_ms": lazy["whole_ms"],
            "follows_mib": lazy["bytes"] / MIB,
        },
        "parts": said["window"],
        "window": came["window"],
        "phases_ms": came["phases_ms"],
        "lane": {name: forecast[name] for name in ("rate", "pace", "share", "round_trip_ms")},
        "observed": forecast["observed"],
    }


def one_container(
    lab: Lab, root: Path, mib: int, per_ms: int, options: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """All modes, in turn; a result for each."""
    rows: dict[str, list[dict[str, Any]]] = {mode: [] for mode in options.modes}
    with workload.running(lab, root, mib, per_ms, folder) as load:
        for _ in range(options.runs):
            for mode in options.modes:
                rows[mode].append(one(load, mode, options.seconds))
        load.verify()
    return [
        {
            "mib": mib,
            "per_ms": per_ms,
            "mode": mode,
            "said": {name: _median(found, "said", name) for name in COLUMNS},
            "came": {name: _median(found, "came", name) for name in COLUMNS},
            "ratio": {
                name: ratio(_median(found, "said", name), _median(found, "came", name))
                for name in COLUMNS
            },
            "runs": found,
        }
        for mode, found in rows.items()
    ]


def _median(rows: list[dict[str, Any]], side: str, name: str) -> float | None:
    return Spread.of([row[side][name] for row in rows]).median


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with workload.hosts(options.storage) as (lab, folder):
        root = workload.build(folder)
        for mib in options.sizes:
            for per_ms in options.per_ms:
                found += one_container(lab, root, mib, per_ms, options, folder)
    say(f"medians of {options.runs} runs, said / came = ratio; load {machine()['load']}")
    table(
        [
            "mode",
            "MiB",
            "pages/ms",
            "downtime, ms",
            "total, ms",
            "sent, MiB",
            "frozen, MiB",
            "follows, ms",
            "follows, MiB",
        ],
        [
            [
                *(row["mode"], row["mib"], row["per_ms"]),
                *(
                    f"{row['said'][name]:.0f} / {row['came'][name]:.0f} = {row['ratio'][name] or 0:.2f}"
                    for name in COLUMNS
                    if name != "rounds"
                ),
            ]
            for row in found
        ],
    )
    return found


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, runs=3, storage="tmpfs", sizes=[16, 256, 1024], modes=["warm", "cold"])
    made.add_argument("--per-ms", type=numbers, default=[1, 10, 50], metavar="N,...")
    made.add_argument("--seconds", type=float, default=3.0, help="that a forecast may watch")
    options = made.parse_args(argv)
    last_line(options, measure(options))


if __name__ == "__main__":
    main()
