"""How long does a whole move take beside sending the same bytes through ssh, and what memory do ckpt's processes need?

Two lab hosts; a container with a process of each size, its memory incompressible. In each run first
`ssh HOST 'cat > /dev/null'` of as many bytes, then a move. Afterwards the workload verifies every page.

    python -m benchmarks.total [--sizes 1024] [--modes warm,cold] [--runs 5] [--json]

Memory is the largest that any one process of a role had of its own while moves were made: what it allocated and its
program text, without the pages that are held for the move (those are told apart).
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.feeder import fed
from benchmarks.results import Spread, last_line, machine, parser, ratio, say, table
from tests.lab import Host, Lab

POUR = [sys.executable, "-m", "benchmarks.lane_ends", "pour"]
_LOOK = 0.02
_ROLES = {
    b"migrate": "migrate",
    b"agent": "agent",
    b"runtime.tracking.injector": "injector",
    b"runtime/monitor/__main__.py": "monitor",
    b"runtime/pager/__main__.py": "pager",
}


class Peak:
    """The largest memory (MiB) of any one of the lab's ckpt processes by its role, while it watches."""

    def __init__(self, lab: Lab) -> None:
        self._mark = str(lab.directory).encode()
        self.own: dict[str, float] = {}
        self.held: dict[str, float] = {}
        """Shared memory: the pages of the move."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with contextlib.suppress(OSError, ValueError, IndexError):
                        self._look(entry)

    def _look(self, entry: Path) -> None:
        role = _role((entry / "cmdline").read_bytes().split(b"\0"))
        if not role or self._mark not in (entry / "environ").read_bytes():
            return
        lines = (entry / "status").read_text().splitlines()
        sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if "kB" in line}
        own = sizes["RssAnon"] + sizes["RssFile"]
        self.own[role] = max(self.own.get(role, 0.0), own)
        self.held[role] = max(self.held.get(role, 0.0), sizes["RssShmem"])


def _role(words: list[bytes]) -> str:
    """What a process of ckpt does, by its command line."""
    python = b"python" in words[0] or words[0].endswith(b"/ckpt")
    found = [
        role for word in words[:6] for end, role in _ROLES.items() if python and word.endswith(end)
    ]
    return found[0] if found else ""


def ssh_cat(source: Host, target: Host, mib: int) -> float:
    """Milliseconds that plain ssh needs for as many incompressible bytes."""
    config = str(source.lab.login.config)
    began = time.monotonic()
    producer = source.popen([*POUR, str(mib)], stdout=subprocess.PIPE)
    consumer = source.popen(
        ["ssh", "-F", config, target.name, "cat > /dev/null"], stdin=producer.stdout
    )
    assert producer.stdout is not None
    producer.stdout.close()
    if consumer.wait() or producer.wait():
        raise RuntimeError("ssh cat failed")
    return (time.monotonic() - began) * 1e3


def one_size(lab: Lab, root: Path, mib: int, options: argparse.Namespace, folder: Path) -> Any:
    """All modes with one container; a result for each."""
    times: dict[str, list[dict[str, float]]] = {mode: [] for mode in options.modes}
    peaks = {mode: Peak(lab) for mode in options.modes}
    with workload.running(lab, root, mib, options.per_ms, folder) as load:
        for mode in options.modes:
            with peaks[mode]:
                for _ in range(options.runs):
                    cat = ssh_cat(load.here, load.there, mib)
                    with fed(2 * mib + 64 if options.feed else 0):
                        gap, report = load.move(mode)
                    row = {"cat_ms": cat, "total_ms": report["total_ms"], "downtime_ms": gap}
                    phases = {f"phase_{k}_ms": v for k, v in report["phases_ms"].items()}
                    times[mode].append({**row, **phases})
        load.verify()
    return [_result(mib, mode, times[mode], peaks[mode]) for mode in options.modes]


def _result(mib: int, mode: str, rows: list[dict[str, float]], peak: Peak) -> dict[str, Any]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    spreads = {name: Spread.of([row[name] for row in rows if name in row]) for name in names}
    shares = sorted(row["total_ms"] / row["cat_ms"] for row in rows)
    return {
        "mib": mib,
        "mode": mode,
        "median": {name: spread.median for name, spread in spreads.items()},
        "min": {name: spread.low for name, spread in spreads.items()},
        "max": {name: spread.high for name, spread in spreads.items()},
        "ratio": ratio(spreads["total_ms"].median, spreads["cat_ms"].median),
        "ratio_min": round(shares[0], 3),
        "ratio_max": round(shares[-1], 3),
        "peak_mib": {role: round(value, 1) for role, value in peak.own.items()},
        "held_mib": {role: round(value, 1) for role, value in peak.held.items() if value >= 1},
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with workload.hosts(options.storage) as (lab, folder):
        root = workload.build(folder)
        for mib in options.sizes:
            found += one_size(lab, root, mib, options, folder)
    say(f"medians of {options.runs} runs, ms; load {machine()['load']}")
    table(
        ["mode", "MiB", "ssh cat", "total", "total ÷ ssh cat", "downtime", "most memory, MiB"],
        [
            [
                *(one["mode"], one["mib"], one["median"]["cat_ms"], one["median"]["total_ms"]),
                *(one["ratio"], one["median"]["downtime_ms"]),
                ", ".join(f"{role} {value:.0f}" for role, value in one["peak_mib"].items()),
            ]
            for one in found
        ],
    )
    return found


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, storage="disk", sizes=[1024], modes=["warm", "cold"], per_ms=True)
    made.add_argument("--no-feed", dest="feed", action="store_false", help="see feeder.py")
    options = made.parse_args(argv)
    last_line(options, measure(options))


if __name__ == "__main__":
    main()
