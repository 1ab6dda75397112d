"""The client of the demo as seen from outside: what redis_client.py reports, kept for the display."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from examples.screen import Sparkline
from tests.lab import Host

_PROGRAM = Path(__file__).with_name("redis_client.py")


class TrafficError(Exception):
    """The client ended too early."""


class Traffic:
    """redis_client.py running on HOST. `pump` reads what it says."""

    def __init__(self, host: Host, address: str, keys: int) -> None:
        self._process = host.popen(
            [sys.executable, str(_PROGRAM), address, "6379", "--keys", str(keys)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=False,
            # Ctrl-C is for the demo, which ends its client itself.
            start_new_session=True,
        )
        self._line = b""
        self.bars = Sparkline()
        self.loaded = False
        self.now = 0.0
        self.requests = 0
        self.rate = 0.0
        self.slowest_ms = 0.0
        self.silent_ms = 0.0
        self.gaps: list[tuple[float, float]] = []
        self.result: dict[str, Any] | None = None

    def pump(self, seconds: float = 0.05) -> None:
        """Wait at most so long for news and take it in. Raises TrafficError when it has died."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        if not data:
            if self.result is None:
                raise TrafficError(f"the client ended with status {self._process.wait()}")
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, report: dict[str, Any]) -> None:
        if "loaded" in report:
            self.loaded = True
        elif "done" in report:
            self.result = report
        else:
            passed = report["now"] - self.now
            if self.now and passed > 0:
                self.rate = (report["requests"] - self.requests) / passed
                self.bars.add(self.rate)
            self.now, self.requests = report["now"], report["requests"]
            self.slowest_ms, self.silent_ms = report["slowest_ms"], report["silent_ms"]
            self.gaps += [(begin, end) for begin, end in report["gaps"]]

    def longest_gap_ms(self, begin: float, end: float) -> float:
        """The longest silence of which some part lies between two moments of CLOCK_MONOTONIC."""
        touching = [late - early for early, late in self.gaps if early < end and late > begin]
        return max(touching, default=0.0) * 1e3

    def finish(self) -> None:
        """Tell it to stop, look at every key and report. The result comes with `pump`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
