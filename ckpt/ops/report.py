"""What a migration did, or would do: for people, for machines, and for the tests that hold it against clocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ckpt.ops.preflight import Finding

LAZY_RISK = (
    "from the moment when it runs there until its last page has come the container needs both hosts; "
    "if either goes down meanwhile, what it did since then is lost"
)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What preflight expects. `basis` says from which figures."""

    bytes_memory: int
    bytes_files: int
    bytes_layers: int
    rate: float
    """Bytes per second of the lane."""
    downtime_s: float
    total_s: float
    basis: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "bytes": {
                "images": self.bytes_memory,
                "files": self.bytes_files,
                "layers": self.bytes_layers,
            },
            "rate": round(self.rate),
            "downtime_ms": round(self.downtime_s * 1e3),
            "total_ms": round(self.total_s * 1e3),
            "basis": self.basis,
        }


@dataclass(slots=True)
class Report:
    """Times in nanoseconds, of the source's clock."""

    id: str
    name: str
    target: str
    mode: str
    state: str = ""
    lane: str = ""
    findings: list[Finding] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    """What preflight looked at: {"what", "here", "there", "ok"}."""
    forecast: Forecast | None = None
    downtime_ns: int = 0
    clock_error_ns: int = 0
    """Half the round trip in which the clocks were compared: how far the downtime may be off."""
    total_ns: int = 0
    bytes_total: int = 0
    bytes_files: int = 0
    bytes_layers: int = 0
    bytes_images: int = 0
    bytes_memory: int = 0
    """Of the lane that carries memory while the container runs (warm)."""
    bytes_last: int = 0
    """Of memory in the frozen window."""
    bytes_owed: int = 0
    """Of memory that was still here when it began to run there (lazy)."""
    whole_ns: int = 0
    """From then until every page was there."""
    faults: int = 0
    """Pages that a task had to wait for meanwhile."""
    lost: str = ""
    """Why it could not go on there: pages that nobody has any more."""
    mode_why: str = ""
    """Why it is not warm."""
    tracker: str = ""
    rounds: list[dict[str, float]] = field(default_factory=list)
    rounds_why: str = ""
    phases: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "target": self.target,
            "mode": self.mode,
            "mode_why": self.mode_why,
            "tracker": self.tracker,
            "rounds": self.rounds,
            "rounds_why": self.rounds_why,
            "lazy": {
                "bytes": self.bytes_owed,
                "faults": self.faults,
                "whole_ms": round(self.whole_ns / 1e6, 1),
                "lost": self.lost,
            }
            if self.mode == "lazy"
            else None,
            "state": self.state,
            "lane": self.lane,
            "findings": self.findings,
            "checks": self.checks,
            "forecast": self.forecast.to_dict() if self.forecast else None,
            "downtime_ms": round(self.downtime_ns / 1e6, 1),
            "clock_error_ms": round(self.clock_error_ns / 1e6, 3),
            "total_ms": round(self.total_ns / 1e6, 1),
            "bytes": {
                "total": self.bytes_total,
                "images": self.bytes_images,
                "memory": self.bytes_memory,
                "memory_frozen": self.bytes_last,
                "files": self.bytes_files,
                "layers": self.bytes_layers,
            },
            "phases_ms": {name: round(ns / 1e6, 1) for name, ns in self.phases.items()},
        }
