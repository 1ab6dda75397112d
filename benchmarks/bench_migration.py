"""How long does a move take beside sending the same bytes through ssh, how long does the program stand still, and how
much memory do ckpt's own processes take?

Two lab hosts on this machine; a container with a process of each size, its memory incompressible; in each round
`ssh HOST 'cat > /dev/null'` of as many bytes, then a move there (and back in the next round). The downtime is the
largest gap in the workload's own ticks (CLOCK_REALTIME, one a millisecond); after the last move it verifies every page.

    python -m benchmarks.bench_migration [--mib 16,256,1024] [--rounds 3] [--mode cold] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab import Host, Lab

SOURCE = Path(__file__).with_name("load.c")
POUR = [sys.executable, "-m", "benchmarks.lanes", "--pour"]
READY = 0


def build(directory: Path) -> Path:
    """A root file system with nothing but the workload."""
    root = directory / "root"
    for name in ("bin", "dev", "proc", "sys", "tmp", "etc", "ticks"):
        (root / name).mkdir(parents=True)
    subprocess.run(["cc", "-O2", "-static", "-o", root / "bin/load", SOURCE], check=True)
    return root


class Ticks:
    """The workload's own clock, as it writes it to a volume that both hosts see."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def values(self) -> list[int]:
        data = self._path.read_bytes() if self._path.exists() else b""
        return [value for (value,) in struct.iter_unpack("=q", data[: len(data) // 8 * 8])]

    def wait_ready(self, timeout: float = 120) -> None:
        until = time.monotonic() + timeout
        while READY not in self.values()[:1]:
            if time.monotonic() > until:
                raise TimeoutError("the workload did not become ready")
            time.sleep(0.05)

    def gap_ms(self, since_ns: int) -> float:
        """The largest time between two ticks after a moment."""
        stamps = [value for value in self.values() if value > since_ns]
        return max((b - a for a, b in zip(stamps, stamps[1:], strict=False)), default=0) / 1e6

    def verdict(self, timeout: float = 120) -> int:
        """How many pages are wrong, once it has said so."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            for value in self.values():
                if value < 0:
                    return -value - 1
            time.sleep(0.05)
        raise TimeoutError("the workload did not verify its memory")


class Peak:
    """The largest memory (VmHWM, MiB) of any one of ckpt's processes by what it does, while it watches."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with contextlib.suppress(OSError, ValueError, IndexError):
                        self._look(entry)

    def _look(self, entry: Path) -> None:
        words = (entry / "cmdline").read_bytes().split(b"\0")
        role = next((w.decode() for w in words if w in (b"migrate", b"agent")), "")
        if any(w.endswith(b"runtime/monitor/__main__.py") for w in words):
            role = "monitor"
        if not role or not any(b"ckpt" in w or b"monitor" in w for w in words[:4]):
            return
        for line in (entry / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                self.found[role] = max(self.found.get(role, 0.0), int(line.split()[1]) / 1024)


def ssh_cat(source: Host, target: Host, mib: int) -> float:
    """Seconds that plain ssh needs for as many incompressible bytes."""
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
    return time.monotonic() - began


@contextlib.contextmanager
def running(
    lab: Lab, host: Host, root: Path, mib: int, per_ms: int, folder: Path
) -> Iterator[Ticks]:
    """A container with the workload, until the block ends; wherever it is by then."""
    volume = folder / f"ticks-{mib}"
    volume.mkdir()
    volume.chmod(0o777)
    v4, _ = lab.container_address()
    host.ckpt(
        "run",
        "-d",
        "--name",
        "load",
        "--network",
        f"l2=br0,ip={v4}",
        "-v",
        f"{volume}:/ticks",
        str(root),
        "--",
        "/bin/load",
        str(mib),
        "/ticks/t",
        str(per_ms),
    )
    try:
        ticks = Ticks(volume / "t")
        ticks.wait_ready()
        yield ticks
    finally:
        for each in (lab["a"], lab["b"]):
            each.run(["ckpt", "rm", "-f", "load"], check=False)


def measure(
    lab: Lab, root: Path, mib: int, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Rounds of one size."""
    rows: list[dict[str, float]] = []
    peak = Peak()
    here, there = lab["a"], lab["b"]
    with running(lab, here, root, mib, options.per_ms, folder) as ticks, peak:
        for _ in range(options.rounds):
            cat = ssh_cat(here, there, mib) if mib else 0.0
            since = time.time_ns()
            report = here.ckpt(
                "migrate", "load", there.name, "--mode", options.mode, "--json", json_output=True
            )
            wall = (time.time_ns() - since) / 1e9
            time.sleep(0.3)
            rows.append(
                {
                    "cat_ms": cat * 1e3,
                    "total_ms": report["total_ms"],
                    "wall_ms": wall * 1e3,
                    "downtime_ms": ticks.gap_ms(since),
                    "measured_ms": report["downtime_ms"],
                    **{f"phase_{name}_ms": value for name, value in report["phases_ms"].items()},
                }
            )
            here, there = there, here
        here.ckpt("kill", "-s", "USR1", "load")
        bad = ticks.verdict()
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {
        "mib": mib,
        "mode": options.mode,
        "rounds": rows,
        "median": {key: round(value, 1) for key, value in middle.items()},
        "ratio": round(middle["total_ms"] / middle["cat_ms"], 2) if middle["cat_ms"] else None,
        "peak_mib": {role: round(value, 1) for role, value in peak.found.items()},
        "bad_pages": bad,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", default="16,256,1024", help="sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", default="cold")
    parser.add_argument("--per-ms", type=int, default=10, help="pages that the workload changes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-") as name, Lab() as lab:
        folder = Path(name)
        folder.chmod(0o755)
        root = build(folder)
        found = []
        for mib in (int(text) for text in options.mib.split(",")):
            one = measure(lab, root, mib, options, folder)
            found.append(one)
            m = one["median"]
            print(
                f"{mib:5d} MiB {options.mode}: downtime {m['downtime_ms']:7.0f} ms (ckpt says {m['measured_ms']:.0f}), "
                f"total {m['total_ms']:7.0f} ms, ssh cat {m['cat_ms']:7.0f} ms, ratio {one['ratio']}, "
                f"peak {one['peak_mib']}, bad pages {one['bad_pages']}",
                flush=True,
            )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parent.parent))
    main()
