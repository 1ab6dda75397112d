"""A service under load on its way: dumped and restored twice in a row, then to another host and back."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.lab import Host, Lab
from tests.patience import patient

CLIENT = Path(__file__).with_name("client.py")


class Load:
    """The client in the lab's third namespace: one connection, no second try."""

    def __init__(self, host: Host, kind: str, address: str, port: int) -> None:
        argv = [sys.executable, "-u", str(CLIENT), kind, address, str(port)]
        self._process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self.lines.append(line.strip())

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + patient(120)
        while not condition():
            assert self._process.poll() is None, f"the client ended: {self.lines[-1:]}"
            assert time.monotonic() < until, f"no {what}; the client said {self.lines[-1:]}"
            time.sleep(0.02)

    def goes_on(self) -> None:
        """Until a few hundred more requests were answered."""
        before = len(self.lines)
        self.wait(lambda: len(self.lines) >= before + 2, "further answer")

    def end(self) -> dict[str, Any]:
        """Have it check everything that it was promised; its report."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(patient(120))
        self._reader.join()
        report: dict[str, Any] = json.loads(self.lines[-1])
        return report

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def running(lab: Lab, tree: Path, *options: str, command: list[str]) -> Iterator[str]:
    """A container `service` on host a, with an address on the segment, which is yielded."""
    network = lab.container_address()[0]
    base = ["-d", "--name", "service", "--network", f"l2=br0,ip={network}", *options]
    lab["a"].ckpt("run", *base, str(tree), "--", *command)
    try:
        yield network.split("/")[0]
    finally:
        for host in (lab["a"], lab["b"]):
            host.ckpt("rm", "-f", "service", check=False)


def wait_for_port(lab: Lab, address: str, port: int) -> None:
    """Until the service takes connections."""
    script = f"import socket; socket.create_connection(('{address}', {port}), 5)"
    until = time.monotonic() + patient(120)
    while lab["c"].run([sys.executable, "-c", script], check=False).returncode:
        assert time.monotonic() < until, lab["a"].ckpt("logs", "service")
        time.sleep(0.1)


def travel(lab: Lab, kind: str, address: str, port: int) -> dict[str, Any]:
    """Every journey under load; the client's report."""
    a, b = lab["a"], lab["b"]
    wait_for_port(lab, address, port)
    load = Load(lab["c"], kind, address, port)
    try:
        load.wait(lambda: "connected" in load.lines, "connection")
        load.goes_on()
        for number in range(2):
            a.ckpt("dump", "service", "--as", f"stage-{number}")
            a.ckpt("rm", "service")
            a.ckpt("restore", f"stage-{number}")
            a.ckpt("checkpoints", "rm", f"stage-{number}")
            load.goes_on()
        a.ckpt("dump", "service", "--as", "left", "--leave-running")
        a.ckpt("checkpoints", "rm", "left")
        load.goes_on()
        for source, target in ((a, b), (b, a)):
            source.ckpt("migrate", "service", f"root@{target.name}")
            load.goes_on()
        report = load.end()
        wait_for_port(lab, address, port)  # new clients are served as well
        return report
    finally:
        load.close()
