"""How long does a container stand still for a checkpoint of it that leaves it running, beside a warm migration?

Two lab hosts on this machine; a container with a process of each size, its memory incompressible, that changes pages
all the time. In each round: `dump --leave-running` warm, the same cold, and a warm migration to the other host. The
pause is the largest gap in the workload's own ticks (CLOCK_REALTIME, one a millisecond); after the last round it
verifies every page, and so does a container restored from the last warm checkpoint.

    python -m benchmarks.bench_pause [--mib 16,1024,4096] [--rounds 3] [--per-ms 10] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench_migration import Ticks, build, running
from tests.lab import Host, Lab

WAYS = ("warm", "cold", "migration")


def dumped(host: Host, ticks: Ticks, mode: str) -> dict[str, float]:
    """One checkpoint; it is there afterwards as `pause`."""
    host.run(["ckpt", "checkpoints", "rm", "pause"], check=False)
    since = time.time_ns()
    words = ["dump", "load", "--leave-running", "--mode", mode, "--as", "pause", "--json"]
    found = host.ckpt(*words, json_output=True)
    total = (time.time_ns() - since) / 1e6
    time.sleep(0.3)  # so that the gap's end is among the ticks
    return {
        "pause_ms": ticks.gap_ms(since),
        "reported_ms": found["pause_ms"],
        "total_ms": total,
        "rounds": len(found["rounds"]),
        "frozen_mib": found["bytes"]["memory_frozen"] / (1 << 20),
    }


def migrated(here: Host, there: Host, ticks: Ticks) -> dict[str, float]:
    since = time.time_ns()
    words = ["migrate", "load", there.name, "--mode", "warm", "--json"]
    found = here.ckpt(*words, json_output=True)
    time.sleep(0.3)
    return {
        "pause_ms": ticks.gap_ms(since),
        "reported_ms": found["downtime_ms"],
        "total_ms": found["total_ms"],
        "rounds": len(found["rounds"]),
        "frozen_mib": found["bytes"]["memory_frozen"] / (1 << 20),
    }


def restored_pages(host: Host, ticks: Ticks) -> int:
    """How many pages are wrong in a container from the checkpoint; the original is gone."""
    host.ckpt("rm", "-f", "load")
    known = sum(value < 0 for value in ticks.values())
    host.ckpt("restore", "pause")
    host.ckpt("kill", "-s", "USR1", "load")
    until = time.monotonic() + 120
    while time.monotonic() < until:
        said = [value for value in ticks.values() if value < 0]
        if len(said) > known:
            return -said[-1] - 1
        time.sleep(0.05)
    raise TimeoutError("the restored workload did not verify its memory")


def measure(
    lab: Lab, root: Path, mib: int, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    here, there = lab["a"], lab["b"]
    with running(lab, here, root, mib, options.per_ms, folder) as ticks:
        for number in range(options.rounds):
            rows["cold"].append(dumped(here, ticks, "cold"))
            rows["warm"].append(dumped(here, ticks, "warm"))
            if number < options.rounds - 1:
                here.ckpt("checkpoints", "rm", "pause")
                rows["migration"].append(migrated(here, there, ticks))
                here, there = there, here
        bad = restored_pages(here, ticks)
        here.ckpt("checkpoints", "rm", "pause")
    middle = {
        way: {key: round(statistics.median(row[key] for row in found), 1) for key in found[0]}
        for way, found in rows.items()
        if found
    }
    ratio = None
    if "migration" in middle:
        ratio = round(middle["warm"]["pause_ms"] / middle["migration"]["pause_ms"], 2)
    return {"mib": mib, "median": middle, "ratio": ratio, "rows": rows, "bad_pages": bad}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--mib", default="16,1024,4096")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-ms", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="ckpt-pause-") as folder, Lab() as lab:
        place = Path(folder)
        place.chmod(0o755)
        root = build(place / "workload")
        for mib in map(int, options.mib.split(",")):
            found = measure(lab, root, mib, options, place)
            results.append(found)
            if not options.json:
                show(found)
    if options.json:
        print(json.dumps(results))


def show(found: dict[str, Any]) -> None:
    print(f"{found['mib']} MiB; {found['bad_pages']} bad pages; warm ÷ migration: {found['ratio']}")
    for way, one in found["median"].items():
        print(
            f"  {way:10} pause {one['pause_ms']:7.1f} ms (said {one['reported_ms']:7.1f}), total "
            f"{one['total_ms']:8.0f} ms, {one['rounds']:.0f} rounds, {one['frozen_mib']:.1f} MiB frozen"
        )


if __name__ == "__main__":
    main()
