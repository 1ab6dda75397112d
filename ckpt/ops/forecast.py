"""What a cold migration will cost, before it is begun.

The container stands still while its memory is dumped, travels and is restored, all at once: so the slowest of the
three decides. How fast the session carries bytes is measured; the rest are figures that benchmarks/ gave.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from ckpt.ops.report import Forecast
from transport.messages import Message
from transport.messages import make as make_message

FIXED = 0.3
"""Seconds that stand still whatever the size: freezing, CRIU's own work at both ends, commit."""
DUMP_RATE = 900e6
"""Bytes per second that CRIU dumps and restores, pages touched for the first time."""
AROUND = 1.0
"""Seconds before and after the frozen window: the session, the preflight, cleaning up."""
_PROBE = 1 << 20
_PROBING = 0.5


def measure(ask: Callable[[Message, float], Message]) -> float:
    """Bytes per second through the control session, in half a second of trying. A bulk lane is rarely slower."""
    body = {"data": os.urandom(_PROBE)}
    began = time.monotonic()
    sent, passed = 0, 0.0
    while passed < _PROBING:
        ask(make_message("note", topic="probe", body=body), 60.0)
        sent += _PROBE
        passed = time.monotonic() - began
    return sent / passed


def make(facts: Mapping[str, Any], layers: int, rate: float) -> Forecast:
    """FACTS: the source's. LAYERS: bytes that are missing there. RATE: bytes per second."""
    memory, files = int(facts["memory"]), int(facts["files"])
    downtime = FIXED + memory / min(rate, DUMP_RATE)
    return Forecast(
        bytes_memory=memory,
        bytes_files=files,
        bytes_layers=layers,
        rate=rate,
        downtime_s=downtime,
        total_s=AROUND + downtime + (files + layers) / rate,
        basis=f"{rate / 1e6:.0f} MB/s measured through the SSH session; "
        f"{DUMP_RATE / 1e6:.0f} MB/s and {FIXED:g} s assumed for CRIU",
    )
