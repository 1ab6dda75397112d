"""What do the clients of a service notice while its container moves to another host?

Redis and PostgreSQL in a container with an address of its own; clients on a third host, each with one TCP connection
and a timetable (service_client.py). Latency percentiles of the requests whose moment lay before the moves, during one
(from the command's start to its end), and between and after them. A connection that breaks ends the benchmark.

    python -m benchmarks.service [--services redis,postgres] [--modes warm] [--runs 5] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import service_client, workload
from benchmarks.results import Spread, last_line, machine, parser, say, table, words
from tests.lab import Lab, rootfs

NAME = "service"
FILL = "for i = 1, tonumber(ARGV[1]) do redis.call('SET', 'fill:' .. i, string.rep('x', 1000)) end"


@dataclass(frozen=True, slots=True)
class Service:
    """How a service is run, and where it listens."""

    port: int
    user: str
    command: tuple[str, ...]


SERVICES = {
    "redis": Service(
        6379,
        "redis",
        (
            *("redis-server", "--bind", "*", "--protected-mode", "no"),
            *("--dir", "/data", "--save", "", "--appendonly", "no"),
        ),
    ),
    "postgres": Service(5432, "postgres", ("postgres", "-D", "/data")),
}
TREES = {"redis": rootfs.redis, "postgres": rootfs.postgresql}


@contextlib.contextmanager
def running(lab: Lab, tree: Path, service: Service) -> Iterator[str]:
    """Its container on host a; its address."""
    network = lab.container_address()[0]
    address = network.split("/")[0]
    base = ["-d", "--name", NAME, "--user", service.user, "--network", f"l2=br0,ip={network}"]
    lab["a"].ckpt("run", *base, str(tree), "--", *service.command)
    try:
        script = f"import socket; socket.create_connection(('{address}', {service.port}), 5)"
        until = time.monotonic() + 60
        while lab["c"].run([sys.executable, "-c", script], check=False).returncode:
            if time.monotonic() > until:
                raise TimeoutError(f"no service: {lab['a'].ckpt('logs', NAME)[-500:]}")
            time.sleep(0.1)
        yield address
    finally:
        for name in ("a", "b"):
            lab[name].run(["ckpt", "rm", "-f", NAME], check=False)


class Clients:
    """They work from here on; end() has them stop and gives (moment, latency) of each request, in ns."""

    def __init__(self, lab: Lab, kind: str, address: str, options: Any, file: Path) -> None:
        port = SERVICES[kind].port
        words = [kind, address, port, options.connections, options.rate / options.connections, file]
        self._file = file
        self._process = lab["c"].popen(
            [sys.executable, "-m", "benchmarks.service_client", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the clients: {self._process.communicate()[1][-1000:]}")

    def end(self) -> list[tuple[int, int]]:
        _, error = self._process.communicate(timeout=120)
        if self._process.returncode:
            raise RuntimeError(f"the clients: {error[-1000:]}")
        return list(service_client.RECORD.iter_unpack(self._file.read_bytes()))


def one(
    lab: Lab, tree: Path, kind: str, mode: str, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """All moves of one service in one mode."""
    windows: list[tuple[int, int]] = []
    downtimes: list[float] = []
    with running(lab, tree, SERVICES[kind]) as address:
        if kind == "redis":
            keys = options.mib * 1000
            lab["a"].ckpt("exec", NAME, "--", "redis-cli", "EVAL", FILL, "0", str(keys))
        clients = Clients(lab, kind, address, options, folder / f"{kind}-{mode}")
        here, there = lab["a"], lab["b"]
        time.sleep(options.pause)
        for _ in range(options.runs):
            began = time.time_ns()
            words = ["ckpt", "migrate", NAME, there.name, "--mode", mode, "--json"]
            report = json.loads(here.run(words, timeout=600).stdout.splitlines()[-1])
            windows.append((began, time.time_ns()))
            downtimes.append(report["downtime_ms"])
            here, there = there, here
            time.sleep(options.pause)
        requests = clients.end()
    return {
        "service": kind,
        "mode": mode,
        "runs": options.runs,
        "rate": options.rate,
        "downtime_ms": Spread.of(downtimes).median,
        **parts(requests, windows),
        "longest_ms": Spread.of([longest(requests, window) for window in windows]).median,
    }


def parts(
    requests: list[tuple[int, int]], windows: list[tuple[int, int]]
) -> dict[str, dict[str, float | None]]:
    """Percentiles in ms of the requests before the first move, during any, and otherwise."""
    sorted_out: dict[str, list[float]] = {"before": [], "during": [], "after": []}
    for moment, latency in requests:
        part = "before" if moment < windows[0][0] else "after"
        if any(begin <= moment <= end for begin, end in windows):
            part = "during"
        sorted_out[part].append(latency / 1e6)
    return {part: _percentiles(Spread.of(values)) for part, values in sorted_out.items()}


def _percentiles(found: Spread) -> dict[str, float | None]:
    return {
        "requests": len(found.values),
        "p50_ms": found.percentile(0.5),
        "p90_ms": found.percentile(0.9),
        "p99_ms": found.percentile(0.99),
        "p99_9_ms": found.percentile(0.999),
        "max_ms": found.high,
    }


def longest(requests: list[tuple[int, int]], window: tuple[int, int]) -> float:
    """The slowest request of a move, in ms."""
    begin, end = window
    return max((late for moment, late in requests if begin <= moment <= end), default=0) / 1e6


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    with workload.hosts(options.storage) as (lab, folder):
        for kind in options.services:
            try:
                tree = TREES[kind](folder / kind / "root")
            except rootfs.Missing as missing:
                say(f"{kind} is left out: {missing}")
                continue
            found += [one(lab, tree, kind, mode, options, folder) for mode in options.modes]
    names = ("requests", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms")
    say(f"latency in ms at {options.rate} requests a second; load {machine()['load']}")
    table(
        ["service", "mode", "when", "requests", "p50", "p90", "p99", "p99.9", "slowest"],
        [
            [one["service"], one["mode"], part, *(one[part][name] for name in names)]
            for one in found
            for part in ("before", "during", "after")
        ],
    )
    for each in found:
        say(
            f"{each['service']}, {each['mode']}: in the median of {options.runs} moves the slowest "
            f"request took {each['longest_ms']} ms; ckpt says {each['downtime_ms']} ms of downtime"
        )
    return found


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__, storage="disk", modes=["warm"])
    made.add_argument("--services", type=words, default=list(SERVICES))
    made.add_argument("--rate", type=int, default=1000, help="requests a second, of all clients")
    made.add_argument("--connections", type=int, default=4)
    made.add_argument("--mib", type=int, default=100, help="of values in Redis")
    made.add_argument("--pause", type=float, default=3.0, help="seconds before and between moves")
    options = made.parse_args(argv)
    last_line(options, measure(options))


if __name__ == "__main__":
    main()
