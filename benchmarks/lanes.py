"""How fast is each kind of lane, beside plain ``ssh HOST 'cat > /dev/null'``?

Incompressible data from a pipe, over an sshd of our own on loopback; both ends and their
encryption share this machine's processors, so the figures are for comparing, not for a network.
Producer, source and destination are
processes of their own.  The kinds take turns, round after round, since a shared machine drifts.

    python -m benchmarks.lanes [--mib 1024] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.contract.sshd_lab import Lab, lab
from transport.lane_handover import LaneServer
from transport.lane_openssh import OpensshWriter
from transport.lane_paramiko import ParamikoWriter
from transport.lane_tls import Identity, TlsListener, TlsWriter
from transport.lanes import LaneReader, LaneWriter, bulk_pipe
from transport.ssh import Session, connect

SELF = [sys.executable, "-m", "benchmarks.lanes"]
BLOCK = 8 << 20


def pour(mib: int) -> None:
    """The producer, a process of its own: random bytes to standard output."""
    block = memoryview(os.urandom(BLOCK))
    left, at = mib << 20, 0
    while left:
        done = os.write(1, block[at : at + min(left, 1 << 20)])
        left, at = left - done, (at + done) % BLOCK


def receive(kind: str, folder: str) -> None:
    """The destination's agent, a process of its own: opens a lane, reads it, counts."""
    ask = json.loads(sys.stdin.readline())
    there = Identity.new()
    listener = None
    with LaneServer(Path(folder)) as server:
        token = server.expect()
        if kind == "tls":
            listener = TlsListener("127.0.0.1", there, bytes.fromhex(ask["certificate"]))
        offer = {
            "token": token,
            "path": str(server.path),
            "port": listener.port if listener else 0,
            "certificate": there.certificate.hex(),
        }
        print(json.dumps(offer), flush=True)
        reader: LaneReader = listener.accept(10) if listener else server.accept(token, 10)
        buffer = bytearray(1 << 20)
        total = 0
        while count := os.readv(reader.fd, [buffer]):
            total += count
        reader.finish(10)
    print(total, flush=True)


def cpu(processes: list[int]) -> float:
    """Seconds of CPU of this process, its ended children and the given processes."""
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in ours)
    ticks = os.sysconf("SC_CLK_TCK")
    for pid in processes:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15])) / ticks
    return total


def splice_through(mib: int, lane_fd: int) -> None:
    """A producer's pipe, spliced into the lane: what the source of a migration does."""
    reader, writer = bulk_pipe()
    with subprocess.Popen([*SELF, "--pour", str(mib)], stdout=writer) as producer:
        os.close(writer)
        while os.splice(reader, lane_fd, 1 << 20):
            pass
    os.close(reader)
    if producer.returncode:
        raise SystemExit("the producer failed")


def plain(host: Lab, session: Session, mib: int) -> None:
    """As a person would call it, with ssh's own choice of cipher."""
    options = ["-F", str(host.config), "-o", f"UserKnownHostsFile={host.known_hosts}"]
    _cat(["ssh", *options, "lab"], mib)


def tuned(host: Lab, session: Session, mib: int) -> None:
    """With the lane's configuration: aes128-gcm first."""
    _cat(session.config.argv(session.target), mib)


def _cat(ssh: list[str], mib: int) -> None:
    child = subprocess.Popen([*ssh, "cat > /dev/null"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    splice_through(mib, child.stdin.fileno())
    child.stdin.close()
    if child.wait():
        raise SystemExit("plain ssh failed")


def lane(kind: str) -> Callable[[Lab, Session, int], None]:
    def run(host: Lab, session: Session, mib: int) -> None:
        with (
            tempfile.TemporaryDirectory(prefix="ckpt-b-") as folder,
            subprocess.Popen(
                [*SELF, "--receive", kind, "--folder", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as agent,
        ):
            here = Identity.new()
            assert agent.stdin is not None and agent.stdout is not None
            agent.stdin.write(json.dumps({"certificate": here.certificate.hex()}) + "\n")
            agent.stdin.flush()
            offer = json.loads(agent.stdout.readline())
            writer = _open(kind, host, session, here, offer)
            splice_through(mib, writer.fd)
            writer.finish(60)
            total = int(agent.stdout.readline())
        if total != mib << 20:
            raise SystemExit(f"{total} bytes arrived of {mib << 20}")

    return run


def _open(
    kind: str, host: Lab, session: Session, here: Identity, offer: dict[str, Any]
) -> LaneWriter:
    if kind == "tls":
        certificate = bytes.fromhex(offer["certificate"])
        return TlsWriter("127.0.0.1", offer["port"], here, certificate)
    make = {"openssh": OpensshWriter, "paramiko": ParamikoWriter}[kind]
    return make(session, host.lane_argv(offer["token"], Path(offer["path"])))


KINDS: dict[str, Callable[[Lab, Session, int], None]] = {
    "ssh cat": plain,
    "ssh cat, aes128-gcm": tuned,
    "openssh": lane("openssh"),
    "tls": lane("tls"),
    "paramiko": lane("paramiko"),
}


def main() -> None:
    options = _options()
    if options.pour:
        pour(options.pour)
    elif options.receive:
        receive(options.receive, options.folder)
    else:
        measure(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pour", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> None:
    size = options.mib << 20
    took: dict[str, list[float]] = {name: [] for name in KINDS}
    used: dict[str, list[float]] = {name: [] for name in KINDS}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ckpt-b-"))
        host = stack.enter_context(lab(Path(folder) / "lab"))
        session = stack.enter_context(connect("lab", files=host.files))
        for _ in range(options.rounds):
            for name, run in KINDS.items():
                watched = [host.sshd.process.pid, *host.sshd.sessions()]
                before, begin = cpu(watched), time.perf_counter()
                run(host, session, options.mib)
                took[name].append(time.perf_counter() - begin)
                used[name].append(cpu(watched) - before)
    plain = statistics.median(took["ssh cat"])
    rows = [
        {
            "lane": name,
            "seconds": round(statistics.median(took[name]), 3),
            "best": round(min(took[name]), 3),
            "mb_per_s": round(size / statistics.median(took[name]) / 1e6),
            "cpu_s": round(statistics.median(used[name]), 2),
            "times_ssh_cat": round(statistics.median(took[name]) / plain, 2),
        }
        for name in KINDS
    ]
    if options.json:
        print(json.dumps({"mib": options.mib, "rounds": options.rounds, "lanes": rows}))
        return
    print(f"{options.mib} MiB, median of {options.rounds} rounds, {os.cpu_count()} processors")
    print(f"{'lane':22}{'seconds':>9}{'best':>8}{'MB/s':>7}{'CPU s':>8}{'× ssh cat':>11}")
    for row in rows:
        print(
            f"{row['lane']:22}{row['seconds']:>9}{row['best']:>8}{row['mb_per_s']:>7}"
            f"{row['cpu_s']:>8}{row['times_ssh_cat']:>11}"
        )


if __name__ == "__main__":
    main()
