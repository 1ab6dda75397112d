"""A report as `ckpt migrate --json` prints one; its texts are as hostile as names, errors and other hosts can be."""

from __future__ import annotations

from typing import Any

from ckpt.ops.report import Report
from ckpt.ops.timeline import Timeline

HOSTILE = "</td></script><script src=//evil.example/x.js>alert(1)</script><img src=x onerror=a()>\"'&\x00\x1b[2J\ud800"
MS = 1_000_000
BEGAN = 1_790_000_000_000 * MS


def moved() -> dict[str, Any]:
    """A warm move of 256 MiB that worked."""
    return _report("moved").to_dict()


def stayed(why: str = HOSTILE) -> dict[str, Any]:
    """One that failed in the frozen window."""
    report = _report("stayed")
    report.why, report.hint, report.downtime_ns = why, "free some space", 0
    report.state = "aborted"
    report.findings = [{"what": HOSTILE, "why": HOSTILE, "hint": HOSTILE}] * 2
    return report.to_dict()


def _report(outcome: str) -> Report:
    timeline = Timeline(began_ns=BEGAN)
    at = 0
    for what, length in (
        ("connect", 212), ("preflight", 48), ("open", 61), ("files", 5), ("memory", 734),
        ("dump", 58), ("restore", 31), ("go", 9), ("clean", 120),
    ):  # fmt: skip
        timeline.phase(what, BEGAN + at * MS, BEGAN + (at + length) * MS)
        at += length
    frozen = BEGAN + 1060 * MS
    for what, after in (
        ("CRIU is let go to freeze", 0), ("all tasks are frozen; CRIU writes images", 13),
        ("everything is sent", 58), ("it is decided: the source's tasks end", 89),
    ):  # fmt: skip
        timeline.moment(what, frozen + after * MS)
    timeline.arrivals(
        {"lane": BEGAN + 300 * MS, "prepared": frozen + 86 * MS, "running": frozen + 97 * MS}, 0
    )
    timeline.samples = [(BEGAN + n * 25 * MS, min(n * 12_000_000, 280_000_000)) for n in range(50)]
    report = Report(
        "0123456789abcdef-01234567", f"web{HOSTILE}", f"root@{HOSTILE}", "warm",
        state="cleaned", lane="tls", downtime_ns=97_300_000, clock_error_ns=61_000,
        total_ns=1278 * MS, bytes_total=271_337_042, bytes_memory=270_000_123, bytes_last=417_792,
        bytes_images=1_336_919, tracker="wp-async", rounds_why="the rest takes 3 ms",
    )  # fmt: skip
    report.rounds = [
        {"bytes": 268_435_456, "ms": 512.5, "sent": 268_500_000, "at_ms": 326.0,
         "rate": 523_776_500, "dirty_rate": 41_943_040},
        {"bytes": 2_097_152, "ms": 9.25, "sent": 1_400_000, "at_ms": 845.0,
         "rate": 226_719_000, "dirty_rate": 0},
    ]  # fmt: skip
    report.timeline = timeline
    report.frozen_ns = frozen
    report.outcome = outcome
    report.environment = {
        "source": {"host": "alpha", "kernel": "6.18.0"},
        "destination": {"host": HOSTILE, "kernel": "6.12.9"},
    }
    report.checks = [{"what": "kernel", "here": "6.18.0", "there": HOSTILE}]
    return report
