"""A Redis server moves between two hosts while a client writes to it and reads from it.

    python -m examples.demo [--keys N] [--moves N]          (make demo)

Two hosts with a client beside them are made on this machine (tests/lab): network namespaces with
their own sshd and their own ckpt root, joined by an Ethernet segment. Redis runs in a container
with a user namespace and its own address on that segment. The client keeps one TCP connection and
always has eight requests under way. Then the container is migrated to the other host and back,
over and over. At the end the client reads every key.

The last line is one JSON object:

    downtime_ms      per move: how long no process of the container ran, as ckpt measured it
    client_gap_ms    per move: the longest silence between two replies, as the client measured it
    total_ms         per move: from the command to its end
    requests, failed_requests, lost_writes, reconnects     as the client counted (redis_client.py)

Exit status: 0 when nothing was lost, nothing failed and the connection held; 1 otherwise; 130 or
143 when interrupted. Everything is taken away in each case.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from examples.screen import Screen, milliseconds, size
from examples.traffic import Traffic, TrafficError
from runtime import cgroups
from tests.lab import Host, Lab, LabError, rootfs

NAME = "redis"
SERVER = [
    *("redis-server", "--bind", "*", "--protected-mode", "no"),
    *("--dir", "/data", "--save", "", "--appendonly", "no"),
]  # fmt: skip
FAILURES = (LabError, TrafficError, subprocess.SubprocessError, OSError, rootfs.Missing)


class Interrupted(BaseException):
    """A signal asked to stop."""


class Signals:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted until `closing` is set; then they wait."""

    def __init__(self) -> None:
        self.heard: int | None = None
        self.closing = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Never SIG_IGN: the programs that clean up would inherit it.
            signal.signal(number, self._hear)

    def _hear(self, number: int, _: object) -> None:
        self.heard = self.heard or number
        self.check()

    def check(self) -> None:
        """Raise for a signal heard before: Python drops exceptions that hit it in a destructor."""
        if self.heard and not self.closing:
            raise Interrupted


class MoveFailed(Exception):
    """ckpt said no."""


class Demo:
    """The story, and what it has measured."""

    def __init__(
        self, lab: Lab, screen: Screen, signals: Signals, *, keys: int, moves: int, pause: float
    ) -> None:
        self.lab = lab
        self.signals = signals
        self.screen = screen
        self.keys = keys
        self.moves = moves
        self.pause = pause
        self.reports: list[dict[str, Any]] = []
        self.client_gaps: list[float] = []
        self.traffic: Traffic | None = None
        self.mover: subprocess.Popen[str] | None = None

    # --- the story --------------------------------------------------------------------------------

    def run(self) -> None:
        here, there = self.lab["a"], self.lab["b"]
        address = self.start_server(here)
        traffic = self.start_traffic(address)
        self.watch(lambda: False, here, seconds=self.pause)
        failure = None
        try:
            for number in range(1, self.moves + 1):
                self.move(number, here, there)
                here, there = there, here
                self.watch(lambda: False, here, seconds=self.pause)
        except MoveFailed as error:
            # What was promised for that case is looked at all the same.
            failure = error
        traffic.finish()
        self.screen.live(f"reading all {self.keys:,} keys back", now=True)
        self.watch(lambda: traffic.result is not None)
        if failure is not None:
            raise failure

    def start_server(self, host: Host) -> str:
        tree = rootfs.redis(self.lab.directory / "redis")
        network = self.lab.container_address()[0]
        address = network.split("/")[0]
        host.ckpt(
            *("run", "-d", "--name", NAME, "--user", "redis"),
            *("--network", f"l2=br0,ip={network}", str(tree), "--", *SERVER),
        )
        self.screen.say(
            f"Hosts a ({self.lab['a'].address}) and b ({self.lab['b'].address}), a client beside "
            f"them, one Ethernet segment.\n"
            f"{_version(host)} runs on a in container {NAME!r}: own user namespace, "
            f"address {address}.\n"
        )
        return address

    def start_traffic(self, address: str) -> Traffic:
        traffic = self.traffic = Traffic(self.lab["c"], address, self.keys)
        self.screen.live(f"the client writes {self.keys:,} keys", now=True)
        self.watch(lambda: traffic.loaded)
        return traffic

    def move(self, number: int, here: Host, there: Host) -> None:
        """One migration, watched. Raises MoveFailed with what ckpt said."""
        assert self.traffic is not None
        began = time.monotonic()
        self.screen.live(self._state(here, there), now=True)
        mover = self.mover = here.popen(
            ["ckpt", "migrate", NAME, there.name, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.watch(lambda: mover.poll() is not None, here, there)
        said, error = mover.communicate()
        if mover.returncode:
            raise MoveFailed(f"move {number}, {here.name} to {there.name}: {_said(error)}")
        # The silence may outlast the command: wait for the reply that ends it.
        ended = time.monotonic()
        self.watch(lambda: self._replied_since(ended), there)
        report = json.loads(said)
        gap = self.traffic.longest_gap_ms(began, ended)
        self.reports.append(report)
        self.client_gaps.append(round(gap, 1))
        self.screen.say(
            f"{number}. {here.name} → {there.name}   "
            f"stood still {milliseconds(report['downtime_ms'])}, "
            f"the client waited {milliseconds(gap)}; "
            f"{report['total_ms'] / 1e3:.1f} s and {size(report['bytes']['total'])} in all",
            strong=True,
        )

    def _replied_since(self, moment: float) -> bool:
        traffic = self.traffic
        assert traffic is not None
        return traffic.now - traffic.silent_ms / 1e3 > moment

    # --- watching ---------------------------------------------------------------------------------

    def watch(
        self,
        done: Callable[[], bool],
        here: Host | None = None,
        there: Host | None = None,
        *,
        seconds: float = 300,
    ) -> None:
        """Show the traffic until DONE or so many SECONDS have passed."""
        assert self.traffic is not None
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            self.signals.check()
            self.traffic.pump()
            if here is not None:
                self.screen.live(self._state(here, there))

    def _state(self, here: Host, there: Host | None) -> str:
        traffic = self.traffic
        assert traffic is not None
        left, right = ("[redis]" if here.name == name else "·" for name in ("a", "b"))
        towards = "──▶" if here.name == "a" else "◀──"
        where = f"a {left:<7} {towards if there else '───'} {right:>7} b"
        silent = traffic.silent_ms >= 20
        late = f"{'silent' if silent else 'slowest'} " + milliseconds(
            traffic.silent_ms if silent else traffic.slowest_ms
        )
        return f"{where} {traffic.rate:>8,.0f}/s {traffic.bars} {late}"

    # --- the result -------------------------------------------------------------------------------

    def result(self, error: str = "") -> dict[str, Any]:
        counted = (self.traffic.result if self.traffic else None) or {}
        return {
            "moves": len(self.reports),
            "mode": self.reports[-1]["mode"] if self.reports else "",
            "keys": self.keys,
            "downtime_ms": [report["downtime_ms"] for report in self.reports],
            "client_gap_ms": self.client_gaps,
            "total_ms": [report["total_ms"] for report in self.reports],
            "bytes": [report["bytes"]["total"] for report in self.reports],
            "requests": counted.get("requests", 0),
            "writes": counted.get("writes", 0),
            "failed_requests": counted.get("failed_requests", 0),
            # Nobody has looked: then every key counts as lost.
            "lost_writes": counted.get("lost_writes", self.keys),
            "reconnects": counted.get("reconnects", 0),
            "error": error or counted.get("error", "no result from the client"),
        }

    def stop(self) -> None:
        """A migration that is under way is asked to undo itself, and gets time for it."""
        if self.mover is not None and self.mover.poll() is None:
            self.mover.terminate()
            try:
                self.mover.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                self.mover.kill()


def _said(error: str) -> str:
    """What ckpt wrote to stderr with --json, as one line."""
    try:
        fault = json.loads(error)
        return f"{fault['doing']} {fault['target']}: {fault['why']}"
    except (ValueError, KeyError, TypeError):
        return error.strip()


def _version(host: Host) -> str:
    said = host.run(["redis-server", "--version"]).stdout
    version = next((word[2:] for word in said.split() if word.startswith("v=")), "")
    return f"Redis {version}".strip()


def perform(
    screen: Screen, signals: Signals, *, keys: int, moves: int, pause: float
) -> dict[str, Any]:
    """Make the hosts, run the story, take the hosts away; the result."""
    lab = Lab()
    demo = Demo(lab, screen, signals, keys=keys, moves=moves, pause=pause)
    error = ""
    try:
        try:
            lab.up()
            demo.run()
        except (*FAILURES, MoveFailed) as failure:
            error = _described(failure)
        finally:
            signals.closing = True
            demo.stop()
            lab.close()
            cgroups.remove_monitors(cgroups.detect())
    finally:
        # Once more: a signal may have come in the very moment before `closing` was set.
        signals.closing = True
        lab.close()
    return demo.result(error)


def _described(failure: BaseException) -> str:
    return "; ".join([str(failure), *getattr(failure, "__notes__", ())])


def verdict(screen: Screen, result: dict[str, Any], seconds: float) -> bool:
    """Say what came of it; whether all is well."""
    good = not result["error"] and not any(
        result[key] for key in ("failed_requests", "lost_writes", "reconnects")
    )
    if result["error"]:
        screen.say(f"FAILED: {result['error']}", strong=True)
    screen.say(
        f"\n{result['requests']:,} requests, {result['failed_requests']:,} failed; "
        f"{result['writes']:,} acknowledged writes, {result['lost_writes']:,} lost; "
        f"{result['reconnects']} reconnects. {result['moves']} moves, {seconds:.0f} s.\n",
        strong=True,
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--moves", type=int, default=4, help="default: %(default)s")
    parser.add_argument(
        "--pause", type=float, default=1.5, help="seconds between moves; default: %(default)s"
    )
    options = parser.parse_args()
    if options.keys < 1 or options.moves < 1:
        parser.error("there has to be something to move, and a move")
    signals = Signals()
    began = time.monotonic()
    screen = Screen()
    try:
        result = perform(
            screen, signals, keys=options.keys, moves=options.moves, pause=options.pause
        )
    except Interrupted:
        result = None
    except LabError as failure:
        print(f"demo: not everything could be taken away: {failure}", file=sys.stderr)
        return 1
    if result is None or signals.heard:
        screen.close()
        print("interrupted; everything is taken away", file=sys.stderr)
        return 128 + (signals.heard or signal.SIGINT)
    good = verdict(screen, result, time.monotonic() - began)
    print(json.dumps(result), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
