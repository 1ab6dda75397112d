"""How many bytes per second does each lane carry, beside `ssh HOST 'cat > /dev/null'`?

First plain random bytes from a pipe through every kind of lane. Then memory of another process as a warm migration
sends it (zero pages and pages that went before are left out, the rest is compressed where that pays), of four kinds:
incompressible, compressible, zero, and rich in duplicates. What counts is the memory's size, whatever travelled.

Over an sshd of our own on loopback: both ends and their encryption share this machine's processors, so the figures are
for comparing, not for a network. Producer, source and destination are processes of their own. All take turns, run after
run, since a shared machine drifts.

    python -m benchmarks.throughput [--mib 512] [--runs 5] [--lanes tls,openssh,paramiko] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lane_ends import MEMORY
from benchmarks.results import Spread, last_line, machine, parser, ratio, say, table, words
from runtime.pagesource.read import TaskReader
from runtime.pagesource.send import PageSender
from runtime.tracking.vmas import anonymous, mappings
from tests.contract.sshd_lab import Lab, lab
from transport.lane_openssh import OpensshWriter
from transport.lane_paramiko import ParamikoWriter
from transport.lane_tls import Identity, TlsWriter
from transport.lanes import PREFERENCE, LaneWriter, bulk_pipe
from transport.ssh import Session, connect

ENDS = [sys.executable, "-m", "benchmarks.lane_ends"]
PLAIN = "ssh cat"
TUNED = "ssh cat, aes128-gcm"
RAW = "random bytes"


class Failed(Exception):
    """Not everything arrived."""


class Road:
    """From here to the sshd, by every kind of lane. What sends returns seconds, from when the connection is there."""

    def __init__(self, host: Lab, session: Session) -> None:
        self._host = host
        self._session = session

    def cat(self, mib: int) -> float:
        """As a person would call it, with ssh's own choice of cipher."""
        options = ["-F", self._host.config, "-o", f"UserKnownHostsFile={self._host.known_hosts}"]
        return self._pour_into(["ssh", *map(str, options), "lab"], mib)

    def tuned(self, mib: int) -> float:
        """With the lane's configuration: aes128-gcm first."""
        return self._pour_into(self._session.config.argv(self._session.target), mib)

    def _pour_into(self, ssh: list[str], mib: int) -> float:
        command = [*ssh, "echo; cat > /dev/null"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        began = time.perf_counter()
        splice_through(mib, child.stdin.fileno())
        child.stdin.close()
        if child.wait():
            raise Failed("plain ssh failed")
        child.stdout.close()
        return time.perf_counter() - began

    def lane(self, kind: str, mib: int) -> float:
        """Random bytes from a pipe."""
        return self._send(kind, "bytes", mib, lambda fd: splice_through(mib, fd))

    def pages(self, kind: str, mib: int, pid: int) -> float:
        """The memory of process PID: the mapping of MIB in it."""

        def send(fd: int) -> None:
            largest = max(filter(anonymous, mappings(pid)), key=lambda vma: vma.end - vma.start)
            part = (largest.start, largest.start + (mib << 20))
            with PageSender(fd) as sender, TaskReader(pid) as reader:
                sender.send(1, reader, [part])
                sender.mark()
                sender.flush()

        return self._send(kind, "pages", mib, send)

    def _send(self, kind: str, what: str, mib: int, send: Callable[[int], None]) -> float:
        with (
            tempfile.TemporaryDirectory(prefix="ckpt-b-") as folder,
            subprocess.Popen(
                [*ENDS, "receive", kind, folder, what],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as agent,
        ):
            here = Identity.new()
            assert agent.stdin is not None and agent.stdout is not None
            agent.stdin.write(json.dumps({"certificate": here.certificate.hex()}) + "\n")
            agent.stdin.flush()
            writer = self._open(kind, here, json.loads(agent.stdout.readline()))
            began = time.perf_counter()
            send(writer.fd)
            writer.finish(60)
            total = int(agent.stdout.readline())
            seconds = time.perf_counter() - began
        if total != mib << 20:
            raise Failed(f"{total} bytes arrived of {mib << 20}")
        return seconds

    def _open(self, kind: str, here: Identity, offer: dict[str, Any]) -> LaneWriter:
        if kind == "tls":
            certificate = bytes.fromhex(offer["certificate"])
            return TlsWriter("127.0.0.1", offer["port"], here, certificate)
        make = {"openssh": OpensshWriter, "paramiko": ParamikoWriter}[kind]
        return make(self._session, self._host.lane_argv(offer["token"], Path(offer["path"])))

    def processor_seconds(self) -> float:
        """CPU seconds of this process, its ended children, and sshd with its sessions."""
        ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        total = sum(usage.ru_utime + usage.ru_stime for usage in ours)
        ticks = os.sysconf("SC_CLK_TCK")
        for pid in (self._host.sshd.process.pid, *self._host.sshd.sessions()):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15])) / ticks
        return total


def splice_through(mib: int, fd: int) -> None:
    """A producer's pipe, spliced into FD: what the source of a cold migration does."""
    reader, writer = bulk_pipe()
    with subprocess.Popen([*ENDS, "pour", str(mib)], stdout=writer) as producer:
        os.close(writer)
        while os.splice(reader, fd, 1 << 20):
            pass
    os.close(reader)
    if producer.returncode:
        raise Failed("the producer failed")


@contextlib.contextmanager
def memory(kind: str, mib: int) -> Iterator[int]:
    """A process with so much memory of this kind; its id."""
    with subprocess.Popen(
        [*ENDS, "hold", kind, str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise Failed(f"no memory of kind {kind}")
            yield process.pid
        finally:
            process.stdin.close()


def contest(
    road: Road, options: argparse.Namespace
) -> Iterator[tuple[str, str, Callable[[], float]]]:
    """What takes part in one run: the lane's name, what it carries, and how."""
    mib = options.mib
    yield PLAIN, RAW, partial(road.cat, mib)
    yield TUNED, RAW, partial(road.tuned, mib)
    for kind in options.lanes:
        yield kind, RAW, partial(road.lane, kind, mib)
    for what in MEMORY:
        with memory(what, mib) as pid:
            for kind in options.lanes:
                yield kind, what, partial(road.pages, kind, mib, pid)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rates: dict[tuple[str, str], list[float]] = {}
    used: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ckpt-b-"))
        host = stack.enter_context(lab(Path(folder) / "lab"))
        session = stack.enter_context(connect("lab", files=host.files))
        road = Road(host, session)
        for _ in range(options.runs):
            for name, what, run in contest(road, options):
                before = road.processor_seconds()
                seconds = run()
                rates.setdefault((name, what), []).append((options.mib << 20) / seconds / 1e6)
                used.setdefault((name, what), []).append(road.processor_seconds() - before)
    plain = Spread.of(rates[PLAIN, RAW]).median
    rows = [
        {
            "lane": name,
            "memory": what,
            "mb_per_s": spread.median,
            "mb_per_s_min": spread.low,
            "mb_per_s_max": spread.high,
            "cpu_s": Spread.of(used[name, what]).median,
            "times_ssh_cat": ratio(spread.median, plain),
        }
        for (name, what), values in rates.items()
        for spread in [Spread.of(values)]
    ]
    say(f"{options.mib} MiB, medians of {options.runs} runs; load {machine()['load']}")
    table(
        ["lane", "what", "MB/s", "slowest", "fastest", "CPU s", "÷ ssh cat"],
        [list(row.values()) for row in rows],
    )
    return {"mib": options.mib, "runs": options.runs, "machine": machine(), "lanes": rows}


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("--mib", type=int, default=512)
    made.add_argument("--lanes", type=words, default=list(PREFERENCE))
    options = made.parse_args(argv)
    last_line(options, measure(options))


if __name__ == "__main__":
    main()
